"""Q-Drift on Flux in fp8: calibrate once, then use. gguf.py has the same for a GGUF, simulated.py both in one for any model."""

from __future__ import annotations

from ..author import Node, Workflow
from .files import CLIP_L, FLUX, FLUX_VAE, T5
from .parts import SEED, compare, look, model_files, picture, prompts

CALIBRATION = "flux1-dev_fp8_e4m3fn"
PROMPTS = """photo of an old lighthouse on a cliff at dusk
close portrait of a woman with freckles, soft window light
a red sports car on a mountain road, motion blur
watercolour of a fox in tall grass
macro of a dragonfly on a reed, morning dew"""


def fp8(flow: Workflow) -> Node:
    return flow.node("UNETLoader", caption="Quantized", unet_name=FLUX, weight_dtype="fp8_e4m3fn")


def qdrift_calibrate(flow: Workflow) -> None:
    full = flow.node("UNETLoader", caption="Full precision", unet_name=FLUX)
    calibrate(
        flow,
        full,
        fp8(flow),
        CALIBRATION,
        [
            "Here both models are the same file, the second as fp8.",
            "Choose cfg, sampler, scheduler, steps and size **as you will use them**, and prompts of the kind you use. Then queue: "
            "five runs and two held out, one model at a time in video memory. Cancel and queue again to go on where it stopped.",
            "The file goes to `models/qdrift`; the workflow qdrift_side_by_side uses it.",
            "The report says in one sentence what to expect. At 8 bits that is, as a rule: nothing you can see.",
            "On the held-out runs the corrections are tried; what helps there is what Q-Drift's *advised* takes.",
        ],
    )


def qdrift_side_by_side(flow: Workflow) -> None:
    use(
        flow,
        fp8(flow),
        CALIBRATION,
        [
            "The same quantized model, the same seed; below with **Q-Drift**. The sampler stays what you chose: the node "
            "exchanges it for its corrected form when sampling starts, and says so in the log.",
            "correction *advised* takes what helped in the calibration's trial. If nothing did, both pictures are the same: at 8 "
            "bits that is to be expected.",
            "Look at fine texture, at flat areas that turned grainy, and at colour casts.",
            "The statistics must come from **this** model (workflow qdrift_calibrate), at the same cfg and sampler.",
            "Try *drift* and strength 0: that is exactly the upper picture. No difference you like? Take it out again.",
        ],
    )


def calibrate(flow: Workflow, full: Node, quantized: Node, filename: str, lines: list[str]) -> None:
    clip = flow.node("DualCLIPLoader", clip_name1=CLIP_L, clip_name2=T5, type="flux")
    latent = flow.node("EmptySD3LatentImage", width=1024, height=1024)
    both = {"full_model": full[0], "quantized_model": quantized[0], "clip": clip[0], "latent": latent[0]}
    as_used = {"cfg": 1.0, "sampler_name": "euler", "scheduler": "simple", "steps": 20}
    made = flow.node(
        "GimbalQDriftCalibrate", prompts=PROMPTS, runs=5, filename=filename, size=(480, 900), **both, **as_used
    )
    report = flow.node("GimbalQDriftReport", stats=made[0], size=(1280, 680))
    note = look(flow, "Calibrate once", *lines)
    load = [full, quantized, clip, latent, model_files(flow)]
    x = flow.grid([load])
    flow.grid([[note], [made], [report]], at=(x, 0))
    flow.group("Load", load, "load")
    flow.group("Calibrate and report", [made, report], "gimbal")


def use(flow: Workflow, model: Node, filename: str, lines: list[str]) -> None:
    clip = flow.node("DualCLIPLoader", clip_name1=CLIP_L, clip_name2=T5, type="flux")
    positive, negative = prompts(flow, clip[0], negative="")
    vae = flow.node("VAELoader", vae_name=FLUX_VAE)
    latent = flow.node("EmptySD3LatentImage", width=1024, height=1024)
    common = {"positive": positive[0], "negative": negative[0], "latent_image": latent[0], "seed": SEED, "steps": 20}
    common |= {"cfg": 1.0, "sampler_name": "euler", "scheduler": "simple"}
    plain = flow.node("KSampler", caption="Quantized, plain", model=model[0], **common)
    plain_image, plain_save = picture(flow, plain, vae[0], "plain")
    stats = flow.node("GimbalQDriftLoad", file=f"{filename}.safetensors")
    drift = flow.node("GimbalQDrift", model=model[0], stats=stats[0])
    sampler = flow.node("KSampler", caption="Quantized, corrected", model=drift[0], **common)
    image, save = picture(flow, sampler, vae[0], "corrected")
    compare(
        flow,
        [[model, clip, vae, latent, model_files(flow)], [positive, negative]],
        look(flow, "Plain against corrected", *lines),
        ("As it is", [[plain, plain_image], [plain_save]]),
        ("Q-Drift", [[stats, drift], [sampler, image], [save]]),
    )
