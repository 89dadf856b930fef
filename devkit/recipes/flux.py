"""Flux dev as it is really used: cfg 1 and the model's own guidance."""

from __future__ import annotations

from ..author import Workflow
from .files import CLIP_L, FLUX, FLUX_VAE, T5
from .parts import PROMPT, SEED, clamped


def burnt(flow: Workflow) -> None:
    model = flow.node("UNETLoader", unet_name=FLUX)
    clip = flow.node("DualCLIPLoader", clip_name1=CLIP_L, clip_name2=T5, type="flux")
    vae = flow.node("VAELoader", vae_name=FLUX_VAE)
    prompt = flow.node("CLIPTextEncode", caption="Prompt", text=PROMPT, clip=clip[0])
    negative = flow.node("ConditioningZeroOut", conditioning=prompt[0])  # cfg 1 ignores it
    guidance = flow.node("FluxGuidance", caption="Guidance of both", conditioning=prompt[0], guidance=10.0)
    latent = flow.node("EmptySD3LatentImage", width=1024, height=1024)
    seed = flow.node("PrimitiveInt", caption="Seed of both", value=SEED)
    common = {
        "positive": guidance[0],
        "negative": negative[0],
        "latent_image": latent[0],
        "seed": seed[0],
        "steps": 20,
    }
    common |= {"cfg": 1.0, "sampler_name": "euler", "scheduler": "simple"}
    clamped(
        flow,
        model,
        [model, clip, vae, latent, prompt, guidance, negative, seed],
        common,
        vae[0],
        [
            "Flux dev runs at cfg 1, with its own guidance: FluxGuidance 10 here, 3.5 as a rule. There **SAMG cannot act**, for "
            "it shapes CFG, and says so.",
            "Look at bright skin and lamps. At guidance 3.5 expect little.",
            "Try AQClip alone and Micrograin alone (Ctrl+B).",
            "A quantized Flux has another trouble, lost colours: see the templates that bring them back.",
        ],
    )
