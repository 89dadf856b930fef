"""Q-Drift on a GGUF of Flux, loaded by city96's pack."""

from __future__ import annotations

from ..author import Node, Workflow
from . import qdrift
from .files import CLIP_L, FLUX, FLUX_GGUF, FLUX_VAE, T5
from .parts import SEED, beside, compare, look, model_files, picture, prompts

CALIBRATION = "flux1-dev_Q4_K_S"
PACK = "The quantized loader is of the pack [ComfyUI-GGUF](https://github.com/city96/ComfyUI-GGUF); install it with the Manager."


def _loader(flow: Workflow) -> Node:
    return flow.node("UnetLoaderGGUF", caption="Quantized (ComfyUI-GGUF)", unet_name=FLUX_GGUF)


def _sampled(flow: Workflow) -> tuple[list[Node], dict]:
    """Text encoders, prompts, VAE, latent and seed; what the samplers take of them."""
    clip = flow.node("DualCLIPLoader", clip_name1=CLIP_L, clip_name2=T5, type="flux")
    positive, negative = prompts(flow, clip[0], negative="")
    vae = flow.node("VAELoader", vae_name=FLUX_VAE)
    latent = flow.node("EmptySD3LatentImage", width=1024, height=1024)
    seed = flow.node("PrimitiveInt", caption="Seed of all", value=SEED)
    common = {"positive": positive[0], "negative": negative[0], "latent_image": latent[0], "seed": seed[0]}
    return [clip, vae, latent, positive, negative, seed], {**common, **qdrift.FLUX_SETTINGS}


def bring_back(flow: Workflow) -> None:
    full = flow.node("UNETLoader", caption="Full precision", unet_name=FLUX)
    quantized = _loader(flow)
    rest, common = _sampled(flow)
    clip, vae, latent, *_ = rest
    stats = qdrift.calibrated(flow, full, quantized, clip, latent, CALIBRATION, qdrift.FLUX_SETTINGS)
    qdrift.three(
        flow,
        [[full, quantized, clip, vae, latent], [*rest[3:], model_files(flow)]],
        (full, quantized, stats),
        common,
        vae[0],
        [
            PACK,
            "Both loaders must hold the **same** model. Set cfg, sampler, scheduler, steps and size **as you will use them**, here "
            "and in the samplers; then run. One model at a time is on the device; after a Cancel it resumes.",
            "The report says what to expect: more at Q3 and Q4 than at Q6 and Q8, where mostly nothing needs repair.",
            "The file goes to `models/qdrift`; the template *Reuse a calibration* takes it from there.",
            "Not enough memory for both? Record Trajectory and Calibrate from Trajectory do the same in two workflows.",
        ],
    )


def use_again(flow: Workflow) -> None:
    model = _loader(flow)
    rest, common = _sampled(flow)
    vae = rest[1]
    plain = flow.node("KSampler", caption="Quantized, plain", model=model[0], **common)
    plain_image, plain_save = picture(flow, plain, vae[0], "plain")
    stats = flow.node("GimbalQDriftLoad", file=f"{CALIBRATION}.safetensors")
    drift = flow.node("GimbalQDrift", model=model[0], stats=stats[0])
    sampler = flow.node("KSampler", caption="Quantized, corrected", model=drift[0], **common)
    image, save = picture(flow, sampler, vae[0], "corrected")
    note = look(
        flow,
        "Plain against corrected",
        PACK,
        "Same GGUF, same seed; on the right with **Quantization Fix**, from the file that *Bring colours back - Flux GGUF* wrote.",
        "Look at colour casts, at fine texture, and at flat areas that turned grainy.",
        "*advised* takes what helped in the calibration's trial, or nothing; try *moments* and *both* too.",
        "For another quantized model, exchange the loader and the file. Each model needs a calibration of its own.",
        "strength 0 is exactly the left picture. No difference you like? Take it out again.",
    )
    compare(
        flow,
        [[model, *rest[:3]], [*rest[3:], model_files(flow)]],
        note,
        ("As it is", [[plain, plain_image], [plain_save]]),
        ("Q-Drift", [[stats, drift], [sampler, image], [save]]),
        beside(flow, plain_image, image, words="Left: quantized. Right: quantized, corrected"),
    )
