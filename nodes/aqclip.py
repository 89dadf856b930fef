"""QSilk AQClip: tile-wise adaptive clipping, at every sampling step or once on a latent."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from comfy_api.latest import io
from torch import Tensor

from ..core.aqclip import AQClipState, aqclip
from ..host.sampling.hooks import add_stage
from ..host.sampling.latent import on_latent
from ..host.sampling.stages import CallContext, DenoisedStage, Window
from . import _inputs
from ._inputs import BURN
from ._tiles import certainty, not_a_picture, source, stride_within, tiles

# name -> what aqclip is told. Half-widths in standard deviations of a tile, from the least to the most certain.
CORRIDORS: dict[str, dict[str, Any]] = {
    "wide": {"corridor": "widening", "form": "smooth", "k_min": 3.5, "k_max": 5.5},
    "gentle": {"corridor": "widening", "form": "smooth", "k_min": 2.5, "k_max": 4.5},
    "strong": {"corridor": "widening", "form": "smooth", "k_min": 1.75, "k_max": 3.0},
    "paper": {"corridor": "paper", "form": "tanh"},
}


def limits() -> list[io.Input]:
    return [
        io.Combo.Input(
            "corridor",
            options=list(CORRIDORS),
            default="wide",
            tooltip="How far a tile's values may stray from its mean, wider where the picture has structure. wide: 3.5 to 5.5 standard "
            "deviations, which reaches outliers alone. gentle: 2.5 to 4.5; changes a clean latent little (36 dB). strong: 1.75 to 3. Both "
            "lower contrast, and a lower cfg does that as well or better. paper: the one-sided corridor and contrast-doubling tanh "
            "as printed; it damages pictures and is here for comparison.",
        ),
        _inputs.strength(),
    ]


def average() -> io.Float.Input:
    return io.Float.Input(
        "ema_beta",
        default=0.0,
        min=0.0,
        max=0.99,
        step=0.01,
        tooltip="How much of the corridor comes from earlier steps. 0 forgets them. The paper's 0.8 lags behind a "
        "prediction that gains contrast from step to step, and takes some of it away.",
    )


@dataclass(frozen=True)
class Clip:
    """The options that the two nodes share."""

    corridor: str
    strength: float
    tile: int
    stride: int

    @classmethod
    def chosen(cls, corridor: str, strength: float, tile: int, stride: int) -> Clip:
        return cls(corridor, strength, tile, stride_within(tile, stride))

    def apply(self, x: Tensor, **run: Any) -> Tensor:
        """Clip x; `run` is what aqclip is told of the sampling run, if there is one."""
        clipped = aqclip(x, self.tile, self.stride, **CORRIDORS[self.corridor], **run)
        return clipped if self.strength == 1.0 else torch.lerp(x, clipped, self.strength)

    def __str__(self) -> str:
        return f"{self.corridor}, tiles of {self.tile} every {self.stride}, strength {self.strength:g}"


@dataclass(frozen=True, eq=False)
class AQClipStage(DenoisedStage):
    clip: Clip
    ema_beta: float
    confidence: str

    @property
    def reads_attention(self) -> bool:
        return self.confidence == "attention"

    @property
    def reads_step(self) -> bool:
        return self.ema_beta > 0.0

    def new_state(self) -> AQClipState | None:
        return AQClipState() if self.ema_beta > 0.0 else None

    def unsupported_reason(self, denoised: Tensor) -> str:
        return not_a_picture(denoised)

    def apply(self, denoised: Tensor, state: AQClipState | None, call: CallContext) -> Tensor:
        confidence = certainty(denoised, self.clip.tile, self.clip.stride, call)
        return self.clip.apply(denoised, confidence=confidence, ema_beta=self.ema_beta, state=state, step=call.step)

    def settings(self) -> str:
        return f"{self.clip}, by {self.confidence}, ema_beta {self.ema_beta:g}"


class GimbalAQClip(io.ComfyNode):
    NAME = "AQClip (QSilk)"

    @classmethod
    def define_schema(cls) -> io.Schema:
        return _inputs.schema(
            node_id="GimbalAQClip",
            display_name=cls.NAME,
            category="gimbal/qsilk",
            description="Against burnt, oversaturated colours and harsh contrast from a high cfg: keeps every step's "
            "prediction, tile by tile, within a corridor around the tile's own mean, after guidance. Wider where the picture "
            "has structure. A local form of dynamic thresholding.",
            search=BURN,
            reports=True,
            inputs=[
                io.Model.Input("model"),
                *limits(),
                *_inputs.window(),
                *_inputs.advanced([source(), *tiles(), average()]),
            ],
            outputs=[io.Model.Output(display_name="model")],
        )

    @classmethod
    def execute(
        cls, model, start_percent: float, end_percent: float, ema_beta: float, confidence: str, **options
    ) -> io.NodeOutput:
        clip, window = Clip.chosen(**options), Window(start_percent, end_percent)
        window.check(cls.NAME)
        if clip.strength == 0.0:
            return _inputs.unchanged(cls, model)
        stage = AQClipStage(cls.NAME, window, clip, ema_beta, confidence, node_id=_inputs.node_id(cls))
        return io.NodeOutput(add_stage(model, stage))


class GimbalAQClipLatent(io.ComfyNode):
    NAME = "AQClip on Latent (QSilk)"

    @classmethod
    def define_schema(cls) -> io.Schema:
        return _inputs.schema(
            node_id="GimbalAQClipLatent",
            display_name=cls.NAME,
            category="gimbal/qsilk",
            description="Against burnt, oversaturated colours: AQClip, once, on a finished latent, before VAE Decode or between "
            "two passes.",
            search=BURN,
            inputs=[io.Latent.Input("latent"), *limits(), *_inputs.advanced(tiles())],
            outputs=[io.Latent.Output(display_name="latent")],
        )

    @classmethod
    def execute(cls, latent, **options) -> io.NodeOutput:
        clip = Clip.chosen(**options)
        if clip.strength == 0.0:
            return _inputs.unchanged(cls, latent)
        return io.NodeOutput(on_latent(_inputs.messages(cls), latent, clip.apply, str(clip)))


NODES = [GimbalAQClip, GimbalAQClipLatent]
