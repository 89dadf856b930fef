"""Stable Diffusion 3.5, with the checkpoint and the settings of ComfyUI's template."""

from __future__ import annotations

from ..author import Workflow
from .files import SD35
from .parts import SEED, compare, look, model_files, picture, prompts


def sd35_side_by_side(flow: Workflow) -> None:
    checkpoint = flow.node("CheckpointLoaderSimple", ckpt_name=SD35)
    positive, negative = prompts(flow, checkpoint[1], negative="")
    latent = flow.node("EmptySD3LatentImage", width=1024, height=1024)
    common = {"positive": positive[0], "negative": negative[0], "latent_image": latent[0], "seed": SEED, "steps": 20}
    common |= {"cfg": 4.0, "sampler_name": "euler", "scheduler": "sgm_uniform"}
    plain = flow.node("KSampler", caption="Plain: cfg 4", model=checkpoint[0], **common)
    plain_image, plain_save = picture(flow, plain, checkpoint[2], "plain")
    aqclip = flow.node("GimbalAQClip", model=checkpoint[0])
    grain = flow.node("GimbalMicrograin", model=aqclip[0], form="smooth")
    sampler = flow.node("KSampler", caption="AQClip and Micrograin: cfg 4", model=grain[0], **common)
    image, save = picture(flow, sampler, checkpoint[2], "stabilised")
    note = look(
        flow,
        "Plain above, stabilised below",
        "Same seed, same settings. Below, **AQClip** at gentle and **Micrograin** in its smooth form.",
        "Look at skies, lamps and skin: colours at the end of their range should come back. The composition stays.",
        "At cfg 4 expect little. Set cfg to 7 in **both** samplers and compare again.",
        "Try Micrograin alone first (Ctrl+B on AQClip): it costs little contrast.",
        "strength 0 in both nodes is exactly the upper picture.",
    )
    compare(
        flow,
        [[checkpoint, positive, negative, latent, model_files(flow)]],
        note,
        ("Plain", [[plain, plain_image], [plain_save]]),
        ("Stabilised: QSilk", [[aqclip, grain], [sampler, image], [save]]),
    )
