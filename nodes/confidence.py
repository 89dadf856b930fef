"""How certain the model is, tile by tile: what steers AQClip, watched on its own and shown as a picture and a mask."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from comfy_api.latest import io
from torch import Tensor
from torch.nn import functional as F

from ..core.confidence import gradient_confidence
from ..host.pictures.maps import Row, strip
from ..host.sampling.hooks import add_stage
from ..host.sampling.stages import CallContext, DenoisedStage, Window
from . import _inputs, _preview
from ._tiles import certainty, not_a_picture, source, stride_within, tiles


@dataclass(frozen=True, eq=False)
class ConfidenceStage(DenoisedStage):
    observes_only: ClassVar[bool] = True

    confidence: str
    tile: int
    stride: int

    @property
    def reads_attention(self) -> bool:
        return self.confidence == "attention"

    def unsupported_reason(self, denoised: Tensor) -> str:
        return not_a_picture(denoised)

    def apply(self, denoised: Tensor, state: None, call: CallContext) -> Tensor:
        certainty(denoised, self.tile, self.stride, call)
        return denoised

    def settings(self) -> str:
        return f"watching only, {self.confidence}, tiles of {self.tile} every {self.stride}"


class GimbalConfidence(io.ComfyNode):
    NAME = "Watch Confidence (QSilk)"

    @classmethod
    def define_schema(cls) -> io.Schema:
        return _inputs.schema(
            node_id="GimbalConfidence",
            display_name=cls.NAME,
            category="gimbal/qsilk",
            description="Watches how certain the model is, tile by tile, without changing the picture. "
            "Confidence Preview shows it after the sampler, as an image and a mask.",
            reports=True,
            inputs=[io.Model.Input("model"), source(), *tiles(), *_inputs.window()],
            outputs=[io.Model.Output(display_name="model")],
        )

    @classmethod
    def execute(
        cls, model, start_percent: float, end_percent: float, confidence: str, tile: int, stride: int
    ) -> io.NodeOutput:
        window = Window(start_percent, end_percent)
        stride = stride_within(tile, stride)
        stage = ConfidenceStage(cls.NAME, window, confidence, tile, stride, node_id=_inputs.node_id(cls))
        return io.NodeOutput(add_stage(model, stage))


class GimbalConfidencePreview(io.ComfyNode):
    NAME = "Confidence Preview (QSilk)"

    @classmethod
    def define_schema(cls) -> io.Schema:
        return _inputs.schema(
            node_id="GimbalConfidencePreview",
            display_name=cls.NAME,
            category="gimbal/qsilk",
            description="Shows the confidence that AQClip or Watch Confidence measured in the run that made this latent. "
            "Without a model: the gradient confidence of the latent itself.",
            inputs=[
                io.Latent.Input("latent", tooltip="The sampler's output."),
                io.Model.Input("model", optional=True, tooltip="The model that also goes to the sampler."),
                *_preview.inputs(),
            ],
            outputs=[io.Image.Output(display_name="image"), io.Mask.Output(display_name="mask")],
        )

    @classmethod
    def execute(cls, latent, columns: int, sample: int, model=None) -> io.NodeOutput:
        samples = latent["samples"]
        if samples.is_nested or not_a_picture(samples):
            raise ValueError(f"{cls.NAME}: the latent is no image or video; connect one of 4 or 5 dimensions.")
        if model is None:
            tiled = _middle_frame(gradient_confidence(samples).cpu())
            one = _preview.picked(tiled, cls.NAME, sample)
            rows = [Row("Certainty of each tile, from the latent's gradient", [one], [""], 0.0, 1.0)]
            return io.NodeOutput(strip("Confidence of this latent", [], rows), _mask(one, samples))
        stage, seen, notes = _preview.observed(
            cls.NAME, model, samples, lambda stage: hasattr(stage, "confidence"), "AQClip or Watch Confidence"
        )
        title = f"Confidence during sampling: {stage.node}"
        if seen is None:
            return io.NodeOutput(_preview.nothing(title, notes), torch.zeros(1, *samples.shape[-2:]))
        calls = _preview.chosen(seen, columns)
        labels = {
            "certainty": "Certainty of each tile, as used",
            "tokens": "The attention's certainty, token by token",
        }
        rows = [
            Row(
                label,
                [_preview.picked(call.maps[name], cls.NAME, sample) for call in calls],
                _preview.captions(calls),
                0.0,
                1.0,
            )
            for name, label in labels.items()
            if all(name in call.maps for call in calls)
        ]
        last = _preview.picked(seen.calls[-1].maps["certainty"], cls.NAME, sample)
        return io.NodeOutput(
            strip(title, [f"{stage.settings()}. 0: uncertain, 1: certain.", *notes], rows), _mask(last, samples)
        )


def _middle_frame(tiled: Tensor) -> Tensor:
    return tiled[:, tiled.shape[1] // 2] if tiled.ndim == 4 else tiled


def _mask(tiled: Tensor, samples: Tensor) -> Tensor:
    """(1, H, W), one pixel for each latent position."""
    return F.interpolate(tiled[None, None], size=samples.shape[-2:], mode="bilinear", align_corners=True)[0]


NODES = [GimbalConfidence, GimbalConfidencePreview]
