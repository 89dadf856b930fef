"""Q-Drift, moment matching and layer correction: a quantized model's sampler, led back at each step to where full precision would be."""

from __future__ import annotations

from functools import partial

import comfy.samplers
from comfy_api.latest import io

from ..core.plan import CHOICES
from ..host.calibration_match import compare_weights
from ..host.corrected_sampler import corrected
from ..host.correction import ADVISED, CORRECTION_CHOICES, FIRST_ORDER, REFUSE, Correction
from ..host.sampling.hooks import replace_sampler
from ..host.sampling.stages import Window
from . import _inputs
from ._inputs import QUANTIZED, Statistics

BIAS = ("off", "deterministic", "stochastic")


def options() -> list[io.Input]:
    shown = [
        io.Combo.Input(
            "correction",
            options=list(CORRECTION_CHOICES),
            default=ADVISED,
            tooltip="advised: what helped on the calibration's held-out runs, or nothing. drift: Q-Drift, for error that acts "
            "as noise. moments: after each step every channel gets full precision's mean and deviation. both: drift and moments. "
            "layers: subtracts the mean error of each layer's output, inside the network, under any sampler. plan: the precision plan "
            "of a calibration with a budget alone; it acts beneath the others as well.",
        ),
        io.Float.Input(
            "strength",
            default=1.0,
            min=0.0,
            max=2.0,
            step=0.05,
            tooltip="How much of each step's correction is applied. 1 is all of it; 0 changes nothing, bit for bit.",
        ),
    ]
    details = [
        io.Combo.Input(
            "channels",
            options=["scalar", "channel"],
            default="scalar",
            tooltip="scalar: one error variance for all latent channels, steadier with few calibration runs. "
            "channel: one for each, as in the paper.",
        ),
        io.Combo.Input(
            "rule",
            options=list(CHOICES["rule"]),
            default="auto",
            tooltip="The formula of the gain. auto: accumulated for multistep samplers, which counts the outputs that they use again; "
            "else paper on eps models and marginal, the same for the noise that a flow model's prediction implies, on flow "
            "models. paper: as printed; over-corrects multistep samplers, and on flow models scales the picture's contrast.",
        ),
    ]
    return [*shown, *_inputs.advanced(details)]


def advanced_options() -> list[io.Input]:
    return [
        io.Combo.Input(
            "variance",
            options=["conditional", "unconditional"],
            default="conditional",
            tooltip="conditional: the part of the error that the prediction does not explain. unconditional: all of it (the paper's "
            "ablation).",
        ),
        io.Combo.Input(
            "bias",
            options=list(BIAS),
            default="off",
            tooltip="Instead of Q-Drift's gain, subtracts each channel's mean error given the prediction (D2-DPM); "
            "stochastic: a draw of the error. Here for comparison: the paper measured it to do harm (FID 31.7 to 75.1), and "
            "so did we at 3 and 4 bits.",
        ),
        io.Combo.Input(
            "unsupported",
            options=[REFUSE, FIRST_ORDER],
            default=REFUSE,
            tooltip="For samplers without a corrected form (uni_pc, adaptive ones, most stochastic ones): stop and say so, or "
            "correct each model call as if it were an Euler step.",
        ),
    ]


class GimbalQDrift(io.ComfyNode):
    NAME = "Quantization Fix (Q-Drift)"

    @classmethod
    def define_schema(cls) -> io.Schema:
        return _inputs.schema(
            node_id="GimbalQDrift",
            display_name=cls.NAME,
            category="gimbal/qdrift",
            description="Against the colour shift and quality loss of a quantized model (GGUF, fp8, nvfp4, SVDQuant): corrects each "
            "sampling step towards full precision, with statistics from Q-Drift Calibrate (Q-Drift, moment matching, layer "
            "correction). Works under an ordinary KSampler. No extra model calls.",
            search=QUANTIZED,
            reports=True,
            inputs=[
                io.Model.Input("model", tooltip="The quantized model."),
                Statistics.Input("stats", tooltip="From Q-Drift Calibrate, Load or Merge."),
                *options(),
                *_inputs.window(),
                *_inputs.advanced(advanced_options()),
            ],
            outputs=[io.Model.Output(display_name="model")],
        )

    @classmethod
    def execute(cls, model, stats, start_percent: float, end_percent: float, **chosen) -> io.NodeOutput:
        window = Window(start_percent, end_percent)
        window.check(cls.NAME)
        weights = compare_weights(cls.NAME, stats.provenance, model)
        correction = Correction.chosen(
            cls.NAME, stats, window=window, node_id=_inputs.node_id(cls), weights=weights, **chosen
        )
        if correction is None:
            return io.NodeOutput(model)
        return io.NodeOutput(replace_sampler(model, cls.NAME, partial(corrected, correction)))


class GimbalQDriftSampler(io.ComfyNode):
    NAME = "Quantization Fix Sampler (Q-Drift)"

    @classmethod
    def define_schema(cls) -> io.Schema:
        return _inputs.schema(
            node_id="GimbalQDriftSampler",
            display_name=cls.NAME,
            category="gimbal/qdrift",
            description="Against the colour shift and quality loss of a quantized model (GGUF, fp8, nvfp4, SVDQuant): the corrected "
            "form of a sampler, for SamplerCustom and SamplerCustomAdvanced. The model stays as it is.",
            search=QUANTIZED,
            reports=True,
            inputs=[
                Statistics.Input("stats", tooltip="From Q-Drift Calibrate, Load or Merge."),
                io.Combo.Input(
                    "sampler_name",
                    options=list(comfy.samplers.SAMPLER_NAMES),
                    default="euler",
                    tooltip="The sampler to correct.",
                ),
                *options(),
                *_inputs.window(),
                *_inputs.advanced(advanced_options()),
            ],
            outputs=[io.Sampler.Output(display_name="sampler")],
        )

    @classmethod
    def execute(cls, stats, sampler_name: str, start_percent: float, end_percent: float, **chosen) -> io.NodeOutput:
        window = Window(start_percent, end_percent)
        window.check(cls.NAME)
        sampler = comfy.samplers.sampler_object(sampler_name)
        correction = Correction.chosen(cls.NAME, stats, window=window, node_id=_inputs.node_id(cls), **chosen)
        return io.NodeOutput(sampler if correction is None else corrected(correction, sampler))


NODES = [GimbalQDrift, GimbalQDriftSampler]
