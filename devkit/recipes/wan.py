"""Wan 2.1 text to video, with the files and the settings of ComfyUI's template."""

from __future__ import annotations

from ..author import Workflow
from .files import WAN, WAN_CLIP, WAN_VAE
from .parts import SEED, STRIP, compare, film, look, model_files, prompts


def wan_side_by_side(flow: Workflow) -> None:
    model = flow.node("UNETLoader", unet_name=WAN)
    clip = flow.node("CLIPLoader", clip_name=WAN_CLIP, type="wan")
    vae = flow.node("VAELoader", vae_name=WAN_VAE)
    positive, negative = prompts(
        flow, clip[0], "a red fox trotting through fresh snow, low sun, telephoto", "static, blurred, oversaturated"
    )
    latent = flow.node("EmptyHunyuanLatentVideo", width=832, height=480, length=33)
    shift = flow.node("ModelSamplingSD3", model=model[0], shift=8.0)
    common = {"positive": positive[0], "negative": negative[0], "latent_image": latent[0], "seed": SEED, "steps": 30}
    common |= {"sampler_name": "uni_pc", "scheduler": "simple"}
    plain = flow.node("KSampler", caption="Plain: cfg 6", model=shift[0], cfg=6.0, **common)
    plain_frames, plain_save = film(flow, plain, vae[0], "plain")
    samg = flow.node("GimbalSAMG", model=shift[0], scope="clip")
    aqclip = flow.node("GimbalAQClip", model=samg[0])
    sampler = flow.node("KSampler", caption="SAMG and AQClip: cfg 4", model=aqclip[0], cfg=4.0, **common)
    frames, save = film(flow, sampler, vae[0], "stabilised")
    preview = flow.node("GimbalGuidancePreview", latent=sampler[0], model=aqclip[0])
    shown = flow.node("PreviewImage", images=preview[0], size=STRIP)
    note = look(
        flow,
        "SAMG on video",
        "Same seed. scope: clip measures all frames by one range, so that **SAMG**'s guidance does not flicker; **AQClip** clips "
        "frame by frame.",
        "Look at snow and fur: burnt patches, and whether they pulse from frame to frame.",
        "The strip at the bottom shows the middle frame.",
        "cfg 4 with SAMG is as strong as 6 without. Try 4.5 above and 3 below.",
        "Take AQClip out with Ctrl+B if contrast falls.",
    )
    compare(
        flow,
        [[model, clip, vae, shift], [positive, negative, latent, model_files(flow)]],
        note,
        ("Plain CFG", [[plain, plain_frames], [plain_save]]),
        ("SAMG and AQClip", [[samg, aqclip], [sampler, frames], [save]]),
        below=[[preview], [shown]],
    )
