"""Calibrating, and what three branches make of it. gguf.py has it for a GGUF of Flux, simulated.py for any model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..author import Node, Row, Workflow
from .files import CLIP_L, FLUX, T5
from .parts import beside, compare, look, model_files, picture

PROMPTS = """photo of an old lighthouse on a cliff at dusk
close portrait of a woman with freckles, soft window light
a red sports car on a mountain road, motion blur
watercolour of a fox in tall grass
macro of a dragonfly on a reed, morning dew"""
FLUX_SETTINGS = {"cfg": 1.0, "sampler_name": "euler", "scheduler": "simple", "steps": 20}


def calibrated(
    flow: Workflow,
    full: Node,
    quantized: Node,
    clip: Node | tuple[Node, int],
    latent: Node,
    filename: str,
    as_used: Mapping[str, object],
    size: tuple[int, int] = (420, 0),
) -> Node:
    return flow.node(
        "GimbalQDriftCalibrate",
        full_model=full[0],
        quantized_model=quantized[0],
        clip=clip if isinstance(clip, tuple) else clip[0],
        latent=latent[0],
        prompts=PROMPTS,
        filename=filename,
        size=size,
        **as_used,
    )


def three(
    flow: Workflow,
    load: Row,
    models: tuple[Node, Node, Node],
    common: Mapping[str, object],
    vae: tuple[Node, int],
    lines: Sequence[str],
) -> None:
    """Full precision, quantized, and quantized with Q-Drift, at one seed.

    models: full precision, quantized, and the node that calibrated them. common: all samplers' inputs but the model.
    """
    full, quantized, stats = models
    exact = flow.node("KSampler", caption="Full precision", model=full[0], **common)
    exact_image, exact_save = picture(flow, exact, vae, "full precision")
    plain = flow.node("KSampler", caption="Quantized, plain", model=quantized[0], **common)
    plain_image, plain_save = picture(flow, plain, vae, "plain")
    drift = flow.node("GimbalQDrift", model=quantized[0], stats=stats[0])
    sampler = flow.node("KSampler", caption="Quantized, corrected", model=drift[0], **common)
    image, save = picture(flow, sampler, vae, "corrected")
    made = [node for node in (quantized, stats) if node not in [each for column in load for each in column]]
    compare(
        flow,
        load,
        look(flow, "Calibrate once, then compare", *lines),
        (
            "What it should be, and what it is",
            [[exact, exact_image], [exact_save], [plain, plain_image], [plain_save]],
        ),
        ("Quantized, with Q-Drift", [[drift], [sampler, image], [save]]),
        beside(flow, exact_image, plain_image, image, words="Full precision; quantized; quantized with Q-Drift"),
        before=("Calibrate", [[node] for node in made]),
    )


def judge_fp8(flow: Workflow) -> None:
    full = flow.node("UNETLoader", caption="Full precision", unet_name=FLUX)
    quantized = flow.node("UNETLoader", caption="Quantized", unet_name=FLUX, weight_dtype="fp8_e4m3fn")
    clip = flow.node("DualCLIPLoader", clip_name1=CLIP_L, clip_name2=T5, type="flux")
    latent = flow.node("EmptySD3LatentImage", width=1024, height=1024)
    made = calibrated(flow, full, quantized, clip, latent, "flux1-dev_fp8_e4m3fn", FLUX_SETTINGS, (480, 0))
    report = flow.node("GimbalQDriftReport", stats=made[0], size=(560, 480))
    note = look(
        flow,
        "Measure before you repair",
        "Here both models are the same file, the second as fp8. Put your own loaders in their place.",
        "Set cfg, sampler, scheduler, steps and size **as you will use them**, and prompts of the kind you use. Then run: five "
        "runs and two held out, one model at a time on the device. After a Cancel it resumes.",
        "The report says what to expect. At 8 bits that is, as a rule: nothing to repair.",
        "If it advises a correction, the file is in `models/qdrift`: go on with the template *Reuse a calibration*.",
    )
    load = [full, quantized, clip, latent, model_files(flow)]
    x = flow.grid([load])
    flow.grid([[note], [made], [report]], at=(x, 0))
    flow.group("Load", load, "load")
    flow.group("Calibrate and report", [made, report], "gimbal")
