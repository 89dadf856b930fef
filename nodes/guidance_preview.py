"""A look at SAMG: where the guidance pulled, and how strongly each place was guided, step by step."""

from __future__ import annotations

from comfy_api.latest import io

from . import _preview
from ..host.pictures.maps import Row, strip
from .samg import SAMGStage


class GimbalGuidancePreview(io.ComfyNode):
    NAME = "Guidance Preview (SAMG)"

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="GimbalGuidancePreview",
            display_name=cls.NAME,
            category="gimbal/guidance",
            description="Shows the guidance energy and the scale that SAMG made of it, over the steps of the run that made "
            "this latent.",
            inputs=[
                io.Latent.Input("latent", tooltip="The sampler's output."),
                io.Model.Input("model", tooltip="The model with SAMG that also goes to the sampler."),
                *_preview.inputs(),
            ],
            outputs=[io.Image.Output(display_name="image")],
        )

    @classmethod
    def execute(cls, latent, model, columns: int, sample: int) -> io.NodeOutput:
        stage, seen, notes = _preview.observed(
            cls.NAME, model, latent["samples"], lambda stage: isinstance(stage, SAMGStage), "SAMG"
        )
        title = f"Guidance during sampling: {stage.node}"
        if seen is None:
            return io.NodeOutput(_preview.nothing(title, notes))
        looks = _preview.chosen(seen, columns)
        energy, scale = (
            [_preview.picked(look.maps[name], cls.NAME, sample) for look in looks] for name in ("energy", "scale")
        )
        names = _preview.captions(looks)
        low, high = min(float(one.min()) for one in scale), max(float(one.max()) for one in scale)
        means = [f"{name}\nmean {float(one.mean()):.3g}" for name, one in zip(names, scale, strict=True)]
        rows = [
            Row("Energy: mean square of cond - uncond over channels, each step in its own range", energy, names),
            Row("Scale: how strongly each place was guided", scale, means, low, high),
        ]
        return io.NodeOutput(strip(title, [f"{stage.settings()}.", *notes], rows))


NODES = [GimbalGuidancePreview]
