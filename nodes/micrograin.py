"""QSilk micrograin: the quantile clamp, at every sampling step or once on a latent."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from comfy_api.latest import io
from torch import Tensor

from ..core.micrograin import Form, micrograin
from ..host.sampling.hooks import add_stage
from ..host.sampling.latent import on_latent
from ..host.sampling.stages import CallContext, DenoisedStage, Window
from . import _inputs
from ._inputs import BURN

FORMS = ["hard", "smooth", "tanh"]


def limits() -> list[io.Input]:
    return [
        io.Combo.Input(
            "form",
            options=FORMS,
            default="hard",
            tooltip="hard: clamp at the two quantiles; values between them stay exactly as they are. smooth: towards the two "
            "quantiles without a kink, from 'knee' on; acts two to three times as strongly. "
            "tanh: the paper's Eq. 1 as printed; it multiplies contrast by alpha everywhere and is here for "
            "comparison (at alpha 2 it ruins pictures).",
        ),
        io.Float.Input(
            "q_low",
            default=0.001,
            min=0.0,
            max=0.49,
            step=0.0005,
            tooltip="Lower quantile: values below it are pulled up to it. 0 leaves the low side alone.",
        ),
        io.Float.Input(
            "q_high",
            default=0.999,
            min=0.51,
            max=1.0,
            step=0.0005,
            tooltip="Upper quantile: values above it are pulled down to it. 1 leaves the high side alone.",
        ),
        _inputs.strength(),
    ]


def shape() -> list[io.Input]:
    inputs = [
        io.Float.Input(
            "knee",
            default=0.8,
            min=0.0,
            max=1.0,
            step=0.05,
            tooltip="Form smooth only: the share of the range that is left exactly as it is. 1 is the same as hard.",
        ),
        io.Float.Input(
            "alpha",
            default=2.0,
            min=0.1,
            max=10.0,
            step=0.1,
            tooltip="Form tanh only: slope at the centre of the range. 1 keeps contrast there, 2 is the paper's.",
        ),
    ]
    return _inputs.advanced(inputs)


@dataclass(frozen=True)
class Limits:
    """The options that the two nodes share."""

    form: Form
    q_low: float
    q_high: float
    strength: float
    knee: float
    alpha: float

    def apply(self, x: Tensor) -> Tensor:
        limited = micrograin(x, self.q_low, self.q_high, self.form, self.alpha, self.knee)
        return limited if self.strength == 1.0 else torch.lerp(x, limited, self.strength)

    def __str__(self) -> str:
        return f"{self.form}, quantiles {self.q_low:g} to {self.q_high:g}, strength {self.strength:g}"


@dataclass(frozen=True, eq=False)
class MicrograinStage(DenoisedStage):
    limits: Limits

    def apply(self, denoised: Tensor, state: None, call: CallContext) -> Tensor:
        return self.limits.apply(denoised)

    def settings(self) -> str:
        return str(self.limits)


class GimbalMicrograin(io.ComfyNode):
    NAME = "Micrograin (QSilk)"

    @classmethod
    def define_schema(cls) -> io.Schema:
        return _inputs.schema(
            node_id="GimbalMicrograin",
            display_name=cls.NAME,
            category="gimbal/qsilk",
            description="Against burnt, oversaturated colours from a high cfg or few steps: keeps every step's prediction within "
            "its own value range by limiting the few most extreme values of each sample, after guidance. The gentlest of the "
            "clamps, akin to dynamic thresholding. A slightly lower cfg does about as much.",
            search=BURN,
            reports=True,
            inputs=[io.Model.Input("model"), *limits(), *_inputs.window(), *shape()],
            outputs=[io.Model.Output(display_name="model")],
        )

    @classmethod
    def execute(cls, model, start_percent: float, end_percent: float, **options) -> io.NodeOutput:
        chosen, window = Limits(**options), Window(start_percent, end_percent)
        window.check(cls.NAME)
        if chosen.strength == 0.0:
            return _inputs.unchanged(cls, model)
        stage = MicrograinStage(cls.NAME, window, chosen, node_id=_inputs.node_id(cls))
        return io.NodeOutput(add_stage(model, stage))


class GimbalMicrograinLatent(io.ComfyNode):
    NAME = "Micrograin on Latent (QSilk)"

    @classmethod
    def define_schema(cls) -> io.Schema:
        return _inputs.schema(
            node_id="GimbalMicrograinLatent",
            display_name=cls.NAME,
            category="gimbal/qsilk",
            description="Against burnt, oversaturated colours: Micrograin's clamp, once, on a finished latent, before VAE "
            "Decode or between two passes.",
            search=BURN,
            inputs=[io.Latent.Input("latent"), *limits(), *shape()],
            outputs=[io.Latent.Output(display_name="latent")],
        )

    @classmethod
    def execute(cls, latent, **options) -> io.NodeOutput:
        chosen = Limits(**options)
        if chosen.strength == 0.0:
            return _inputs.unchanged(cls, latent)
        return io.NodeOutput(on_latent(_inputs.messages(cls), latent, chosen.apply, str(chosen)))


NODES = [GimbalMicrograin, GimbalMicrograinLatent]
