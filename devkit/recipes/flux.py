"""Flux dev as it is really used: cfg 1 and the model's own guidance."""

from __future__ import annotations

from ..author import Workflow
from .files import CLIP_L, FLUX, FLUX_VAE, T5
from .parts import PROMPT, SEED, compare, look, model_files, picture


def flux_side_by_side(flow: Workflow) -> None:
    model = flow.node("UNETLoader", unet_name=FLUX)
    clip = flow.node("DualCLIPLoader", clip_name1=CLIP_L, clip_name2=T5, type="flux")
    vae = flow.node("VAELoader", vae_name=FLUX_VAE)
    prompt = flow.node("CLIPTextEncode", caption="Prompt", text=PROMPT, clip=clip[0])
    negative = flow.node("ConditioningZeroOut", conditioning=prompt[0])  # cfg 1 ignores it
    guidance = flow.node("FluxGuidance", conditioning=prompt[0], guidance=3.5)
    latent = flow.node("EmptySD3LatentImage", width=1024, height=1024)
    common = {"positive": guidance[0], "negative": negative[0], "latent_image": latent[0], "seed": SEED, "steps": 20}
    common |= {"cfg": 1.0, "sampler_name": "euler", "scheduler": "simple"}
    plain = flow.node("KSampler", caption="Plain", model=model[0], **common)
    plain_image, plain_save = picture(flow, plain, vae[0], "plain")
    aqclip = flow.node("GimbalAQClip", model=model[0])
    grain = flow.node("GimbalMicrograin", model=aqclip[0], form="smooth")
    sampler = flow.node("KSampler", caption="AQClip and Micrograin", model=grain[0], **common)
    image, save = picture(flow, sampler, vae[0], "stabilised")
    note = look(
        flow,
        "Flux at cfg 1",
        "Flux dev runs at cfg 1, with its own guidance. There **SAMG cannot act**, for it shapes CFG, and says so in the "
        "log; the clamps act as everywhere.",
        "Look at bright skin and lamps. At guidance 3.5 expect little.",
        "Raise FluxGuidance to 6, then 10: there the limits have work.",
        "Try AQClip alone and Micrograin alone (Ctrl+B).",
        "A quantized Flux has another trouble, drift: see the qdrift workflows.",
    )
    compare(
        flow,
        [[model, clip, vae, latent, model_files(flow)], [prompt, guidance, negative]],
        note,
        ("Plain", [[plain, plain_image], [plain_save]]),
        ("Stabilised: QSilk", [[aqclip, grain], [sampler, image], [save]]),
    )
