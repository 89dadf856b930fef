"""What the calibrating nodes ask for, worded once, and what they give back."""

from __future__ import annotations

import comfy.samplers
from comfy_api.latest import io, ui

from ..host.calibrating.finish import CalibrationResult
from ..host.calibrating.task import CALIBRATED
from ._inputs import Statistics, advanced

FULL = "The model in full precision, or the best there is (bf16, fp16, Q8_0)."


def full_model(optional: bool = False) -> io.Input:
    """optional: without it the quantized model with unrounded activations takes its place."""
    more = " Left out, the quantized model with unrounded activations is the reference, if it rounds any (nvfp4, mxfp8, int8)."
    return io.Model.Input("full_model", optional=optional, tooltip=FULL + (more if optional else ""))


def quantized_model() -> io.Input:
    return io.Model.Input(
        "quantized_model",
        tooltip="The same model, quantized, with the same LoRAs and sampling nodes behind it, if any.",
    )


def prompts() -> list[io.Input]:
    return [
        io.Conditioning.Input(
            "positive", optional=True, tooltip="Used in every run. Alternatively, connect clip and write prompts."
        ),
        io.Conditioning.Input(
            "negative", optional=True, tooltip="Used in every run. Required with positive, except at cfg 1."
        ),
        io.Clip.Input(
            "clip", optional=True, tooltip="Encodes the prompts. Leave it unconnected when positive is connected."
        ),
        *advanced(_texts()),
    ]


def _texts() -> list[io.Input]:
    return [
        io.String.Input(
            "prompts",
            default="",
            multiline=True,
            tooltip="In place of positive: one prompt per line; runs cycle through them. Empty: positive is used.",
        ),
        io.String.Input("negative_prompt", default="", tooltip="In place of negative, for all prompts. May be empty."),
    ]


def schedule() -> list[io.Input]:
    return [
        io.Latent.Input("latent", tooltip="An empty latent of the size and batch to calibrate at."),
        io.Float.Input(
            "cfg",
            default=7.0,
            min=0.0,
            max=100.0,
            step=0.1,
            round=0.01,
            tooltip="Guidance, as you will sample: it magnifies the error. 1 runs without a negative.",
        ),
        io.Combo.Input(
            "sampler_name",
            options=list(comfy.samplers.KSampler.SAMPLERS),
            default="euler",
            tooltip="Follows the full-precision trajectory, as you will sample. Every model call of it is compared.",
        ),
        io.Combo.Input(
            "scheduler",
            options=list(comfy.samplers.KSampler.SCHEDULERS),
            default="simple",
            tooltip="Noise levels of the steps. Between them the statistics are interpolated.",
        ),
        io.Int.Input("steps", default=20, min=1, max=1000, tooltip="Sampling steps of a run."),
        io.Sigmas.Input("sigmas", optional=True, tooltip="Noise levels in place of scheduler and steps."),
        *advanced(_runs()),
    ]


def _runs() -> list[io.Input]:
    return [
        io.Int.Input(
            "runs",
            default=5,
            min=1,
            max=1000,
            tooltip="Trajectories. 5 suffice for drift (Q-Drift Sec. 5.4); moments gain a little more from 20.",
        ),
        io.Int.Input(
            "first_seed",
            default=0,
            min=0,
            max=2**63 - 1,
            tooltip="Noise of the first run; later runs use consecutive seeds.",
        ),
        io.Int.Input(
            "held_out",
            default=2,
            min=0,
            max=100,
            tooltip="Additional runs on which the corrections are tried: what helps there is what Quantization Fix takes by 'advised'. "
            "0: no trial, no advice.",
        ),
    ]


def correction() -> io.Input:
    return io.Combo.Input(
        "correction",
        options=list(CALIBRATED),
        default=CALIBRATED[0],
        tooltip="drift and moments: also find the layer correction, and match full precision's mean and deviation, step by "
        "step, with all runs together. Three times the time of drift alone, before the trial; most of the gain on coarse "
        "quantization.",
    )


def trim() -> io.Input:
    return io.Float.Input(
        "trim",
        default=0.0,
        min=0.0,
        max=100.0,
        step=0.5,
        tooltip="Leave out single values whose error is more than this many standard deviations off. 0 leaves nothing out; 4 is what "
        "the paper's code does: 0.15 to 0.4 % of values and 2 to 10 % of V on the demo models, and no steady difference in the "
        "pictures.",
    )


def budget() -> io.Input:
    return io.Float.Input(
        "budget",
        default=0.0,
        min=0.0,
        max=1.0,
        step=0.05,
        round=0.01,
        optional=True,
        tooltip="For models that round activations (nvfp4, mxfp8, int8, W4A4): share of the network's multiply-adds that may run with "
        "unrounded activations, 0.1 for a tenth. The calibration measures which steps and layers gain most by that, about 40 more "
        "runs of the quantized model, and finds all corrections under that plan. 0: no plan.",
    )


def filename(default: str) -> io.Input:
    return io.String.Input(
        "filename",
        default=default,
        tooltip="Name in models/qdrift. Files from other runs are not overwritten: a number is added.",
    )


def outputs() -> list[io.Output]:
    return [
        Statistics.Output(display_name="stats"),
        io.Image.Output(display_name="report"),
        io.String.Output(display_name="path"),
        io.Image.Output(display_name="plots"),
    ]


def result_output(cls: type[io.ComfyNode], finished: CalibrationResult) -> io.NodeOutput:
    """What was written, and the verdict on the node."""
    preview = ui.PreviewImage(finished.card, cls=cls)
    return io.NodeOutput(finished.statistics, finished.card, str(finished.path), finished.plots, ui=preview)
