"""Stable Diffusion 3.5, with the checkpoint of ComfyUI's template."""

from __future__ import annotations

from ..author import Workflow
from .files import SD35
from .parts import BURNT, clamped, dials, prompts


def burnt(flow: Workflow) -> None:
    checkpoint = flow.node("CheckpointLoaderSimple", ckpt_name=SD35)
    positive, negative = prompts(flow, checkpoint[1], negative="")
    latent = flow.node("EmptySD3LatentImage", width=1024, height=1024)
    seed, cfg = dials(flow, BURNT)
    common = {
        "positive": positive[0],
        "negative": negative[0],
        "latent_image": latent[0],
        "seed": seed[0],
        "steps": 20,
    }
    common |= {"cfg": cfg[0], "sampler_name": "euler", "scheduler": "sgm_uniform"}
    clamped(
        flow,
        checkpoint,
        [checkpoint, positive, negative, latent, seed, cfg],
        common,
        checkpoint[2],
        [
            "Look at skies, lamps and skin: colours at the end of their range should come back. The composition stays.",
            "This model's usual cfg is 4: there expect little. Try 7 and compare again.",
            "Try Micrograin alone first (Ctrl+B on AQClip): it costs little contrast.",
            "strength 0 in both nodes is exactly the left picture.",
        ],
    )
