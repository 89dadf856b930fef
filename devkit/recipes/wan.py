"""Wan 2.1 text to video, with the files of ComfyUI's template."""

from __future__ import annotations

from ..author import Workflow
from .files import WAN, WAN_CLIP, WAN_VAE
from .parts import BURNT, clamped, dials, film, prompts


def burnt(flow: Workflow) -> None:
    model = flow.node("UNETLoader", unet_name=WAN)
    clip = flow.node("CLIPLoader", clip_name=WAN_CLIP, type="wan")
    vae = flow.node("VAELoader", vae_name=WAN_VAE)
    positive, negative = prompts(
        flow, clip[0], "a red fox trotting through fresh snow, low sun, telephoto", "static, blurred, oversaturated"
    )
    latent = flow.node("EmptyHunyuanLatentVideo", width=832, height=480, length=33)
    shift = flow.node("ModelSamplingSD3", model=model[0], shift=8.0)
    seed, cfg = dials(flow, BURNT)
    common = {
        "positive": positive[0],
        "negative": negative[0],
        "latent_image": latent[0],
        "seed": seed[0],
        "steps": 30,
    }
    common |= {"cfg": cfg[0], "sampler_name": "uni_pc", "scheduler": "simple"}
    clamped(
        flow,
        shift,
        [model, clip, vae, shift, positive, negative, latent, seed, cfg],
        common,
        vae[0],
        [
            "Both clamp frame by frame. Look at snow and fur: burnt patches, and whether they pulse from frame to frame.",
            "This model's usual cfg is 6: there less burns, and the two films come closer.",
            "Take AQClip out with Ctrl+B if contrast falls.",
        ],
        film,
    )
