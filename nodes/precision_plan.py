"""Precision plan: some steps of a quantized model that rounds activations, without that."""

from __future__ import annotations

from comfy_api.latest import io

from ..host.precision import PrecisionStage
from ..host.sampling.hooks import add_stage
from ..host.sampling.stages import Window
from . import _inputs
from ._inputs import QUANTIZED

COMPOSITION = ("composition", "same seed", "mixed precision", "full precision", "activations", "w4a4", "int8", "mxfp8")


class GimbalPrecisionPlan(io.ComfyNode):
    NAME = "Keep Composition (Precision Plan)"

    @classmethod
    def define_schema(cls) -> io.Schema:
        return _inputs.schema(
            node_id="GimbalPrecisionPlan",
            display_name=cls.NAME,
            category="gimbal/qdrift",
            description="Against another composition at the same seed with a model that rounds activations (nvfp4, mxfp8, int8, "
            "W4A4, fp8 with scaled inputs): runs the first or last steps with unrounded activations, from the same file. These "
            "steps take longer. Needs no calibration. Weight-only formats (GGUF) stay as they are, and the node says so.",
            search=(*COMPOSITION, *QUANTIZED),
            reports=True,
            inputs=[
                io.Model.Input("model", tooltip="The quantized model."),
                io.Int.Input(
                    "first_steps",
                    default=3,
                    min=0,
                    max=10000,
                    tooltip="How many steps at the start run with unrounded activations: they decide the composition. 0: none.",
                ),
                io.Int.Input(
                    "last_steps",
                    default=0,
                    min=0,
                    max=10000,
                    tooltip="How many steps at the end run with unrounded activations. 0: none; with first_steps 0 nothing "
                    "changes, bit for bit.",
                ),
                *_inputs.advanced([_layers()]),
            ],
            outputs=[io.Model.Output(display_name="model")],
        )

    @classmethod
    def execute(cls, model, first_steps: int, last_steps: int, layers: str = "") -> io.NodeOutput:
        if first_steps < 0 or last_steps < 0:
            raise ValueError(
                f"{cls.NAME}: first_steps is {first_steps} and last_steps {last_steps}; set whole numbers of at least 0."
            )
        if first_steps == last_steps == 0:
            _inputs.messages(cls).add("changes nothing: first_steps and last_steps are 0")
            return io.NodeOutput(model)
        patterns = tuple(pattern.strip() for pattern in layers.split(",") if pattern.strip())
        stage = PrecisionStage(cls.NAME, Window(), first_steps, last_steps, patterns, node_id=_inputs.node_id(cls))
        return io.NodeOutput(add_stage(model, stage))


def _layers() -> io.Input:
    return io.String.Input(
        "layers",
        default="",
        tooltip="Only layers whose names match, with * and ?, several patterns set apart by commas: *attn*, *.mlp.*. Empty: all "
        "that round activations.",
    )


NODES = [GimbalPrecisionPlan]
