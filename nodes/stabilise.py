"""Stabilise: guidance that burns less, by rewriting the conditional prediction before CFG."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from comfy_api.latest import io
from torch import Tensor

from ..core.stabilise import DEFAULT, Factors, stabilised_cond
from ..host.model_kind import is_flow
from ..host.sampling.hooks import add_stage
from ..host.sampling.stages import GuidanceContext, GuidanceStage, Window
from . import _inputs
from ._inputs import BURN

FLOW, ANY = "flow models only", "all models"


@dataclass(frozen=True, eq=False)
class StabiliseStage(GuidanceStage):
    amount: float
    factors: Factors

    def settings(self) -> str:
        each = (f"{name} {value:g}" for name, value in asdict(self.factors).items())
        return f"amount {self.amount:g}, {', '.join(each)}"

    def apply(self, cond: Tensor, uncond: Tensor, call: GuidanceContext) -> Tensor:
        return stabilised_cond(cond, uncond, call.noisy, call.cfg, self.amount, self.factors)


class GimbalStabilise(io.ComfyNode):
    NAME = "Stabilise"

    @classmethod
    def define_schema(cls) -> io.Schema:
        return _inputs.schema(
            node_id="GimbalStabilise",
            display_name=cls.NAME,
            category="gimbal/guidance",
            description="For a high cfg that burns the picture of a flow model (SD3, Flux, Qwen-Image, Wan). It redirects guidance and about keeps its strength. At equal contrast the "
            "letters model came nearer to real pictures in features than with plain guidance, and no further from them in pixels. Needs "
            "cfg above 1.",
            search=BURN,
            reports=True,
            inputs=[
                io.Model.Input("model"),
                io.Float.Input(
                    "amount",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    display_mode=io.NumberDisplay.slider,
                    tooltip="From plain guidance to all of it. 0 changes nothing, bit for bit.",
                ),
                *_inputs.advanced([*_factors(), _models()]),
                *_inputs.window(),
            ],
            outputs=[io.Model.Output(display_name="model")],
        )

    @classmethod
    def execute(
        cls, model, amount: float, models: str, start_percent: float, end_percent: float, **factors
    ) -> io.NodeOutput:
        window = Window(start_percent, end_percent)
        window.check(cls.NAME)
        if amount == 0.0:
            _inputs.messages(cls).add("changes nothing: amount is 0")
            return io.NodeOutput(model)
        if models == FLOW and not is_flow(model):
            _inputs.messages(cls).info(
                "changes nothing: this is no flow model, and an eps model came out worse with it; try it with 'models' on "
                f"{ANY!r}"
            )
            return io.NodeOutput(model)
        stage = StabiliseStage(cls.NAME, window, amount, Factors(**factors), node_id=_inputs.node_id(cls))
        return io.NodeOutput(add_stage(model, stage))


def _factors() -> list[io.Input]:
    return [
        _factor("along", 20.0, "Factor of the guidance along the noise that the predictions see. 1: as it is."),
        _factor("across", 5.0, "Factor of the rest of the guidance, which makes most of its strength. 1: as it is."),
        _factor(
            "fade",
            4.0,
            "How far weak values of the rest fade out: those below this share of their channel's root mean square. 0: none.",
        ),
        _factor("fine", 4.0, "Factor of the rest's fine detail, beside 'across'. 1: as its coarse part."),
    ]


def _models() -> io.Input:
    return io.Combo.Input(
        "models",
        options=[FLOW, ANY],
        default=FLOW,
        tooltip="On which models it acts. An eps model, as SD1.5 and SDXL are, came out worse in features with it.",
    )


def _factor(name: str, most: float, tooltip: str) -> io.Float.Input:
    return io.Float.Input(name, default=getattr(DEFAULT, name), min=0.0, max=most, step=0.05, tooltip=tooltip)


NODES = [GimbalStabilise]
