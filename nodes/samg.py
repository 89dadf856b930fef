"""SAMG: a guidance scale for each place of the picture, by rewriting the conditional prediction before CFG; and a look at it."""

from __future__ import annotations

from dataclasses import dataclass

from comfy_api.latest import io
from torch import Tensor

from ..core.samg import Curve, Normalize, Scope, samg_cond
from ..host.pictures.maps import Row, strip
from ..host.sampling.hooks import add_stage
from ..host.sampling.stages import GuidanceContext, GuidanceStage, Window
from . import _inputs, _preview

FOLLOW = -1.0  # derive the scale from the sampler's cfg
OWN = "w_min and w_max"
PAPERS_SHARES = "paper's shares: 2/3 to 1.6 of cfg"  # its [5, 12] at 7.5, of a mean of about 1.5 cfg
SHARES = {OWN: (0.44, 1.07), PAPERS_SHARES: (2 / 3, 1.6)}  # OWN: in the same proportion, of a mean of about cfg
PRESETS = {"SD1.5 / SDXL paper: 5 to 12": (5.0, 12.0), "SD3.5 paper: 3 to 7.5": (3.0, 7.5)}


@dataclass(frozen=True, eq=False)
class SAMGStage(GuidanceStage):
    preset: str
    w_min: float
    w_max: float
    normalize: Normalize
    curve: Curve
    scope: Scope
    strength: float

    def unsupported_reason(self, cond: Tensor, cfg: float) -> str:
        if cond.ndim not in (4, 5):
            return f"It needs an image or video latent, not one of shape {tuple(cond.shape)}."
        return ""

    def range(self, cfg: float) -> tuple[float, float]:
        """The least and the largest scale, at the sampler's cfg. One that is given moves the other where they would cross."""
        low, high = PRESETS.get(self.preset) or (share * cfg for share in SHARES[self.preset])
        if self.w_min != FOLLOW:
            low, high = self.w_min, max(high, self.w_min)
        if self.w_max != FOLLOW:
            low, high = min(low, self.w_max), self.w_max
        return low, high

    def apply(self, cond: Tensor, uncond: Tensor, call: GuidanceContext) -> Tensor:
        low, high = self.range(call.cfg)
        if low == high == call.cfg:
            return cond  # plain CFG, bit for bit
        shape = self.normalize, self.curve, self.scope
        steered, energy, scale = samg_cond(cond, uncond, call.cfg, (low, high), *shape, self.strength)
        call.record_maps(energy=energy[:, 0], scale=scale[:, 0])
        return steered

    def settings(self) -> str:
        source = "preset" if self.preset in PRESETS else "cfg"
        low, high = (f"from {source}" if w == FOLLOW else f"{w:g}" for w in (self.w_min, self.w_max))
        return self._described(f"w_min {low}, w_max {high}")

    def settings_at(self, cfg: float) -> str:
        low, high = self.range(cfg)
        return self._described(f"scales {low:.3g} to {high:.3g} at cfg {cfg:g}")

    def _described(self, scales: str) -> str:
        return f"{scales}, {self.normalize}, {self.curve}, {self.scope}, strength {self.strength:g}"


class GimbalSAMG(io.ComfyNode):
    NAME = "SAMG Spatial Guidance"

    @classmethod
    def define_schema(cls) -> io.Schema:
        return _inputs.schema(
            node_id="GimbalSAMG",
            display_name=cls.NAME,
            category="gimbal/guidance",
            description="Guides each place of the picture at its own cfg: less where the guidance is strong (edges), more where "
            "it is weak; about as strongly as plain cfg on average. It moves guidance about and makes it no better: at equal "
            "contrast the letters model's pictures were no nearer to real ones. Needs cfg above 1.",
            search=(
                "cfg",
                "guidance",
                "adaptive guidance",
                "spatial cfg",
                "prompt adherence",
                "contrast",
                "oversaturated",
            ),
            reports=True,
            inputs=[
                io.Model.Input("model"),
                io.Combo.Input(
                    "preset",
                    options=[*SHARES, *PRESETS],
                    default=OWN,
                    tooltip="What -1 in w_min and w_max stands for: 0.44 to 1.07 of cfg, of a mean of about cfg; the paper's shares of "
                    "cfg, of a mean of about 1.5 cfg, much stronger; or its scales for SD1.5 and SDXL (at cfg 7.5) or SD3.5.",
                ),
                _scale(
                    "w_min",
                    "Scale where the guidance is strongest. -1: the preset's. ",
                ),
                _scale("w_max", "Scale where the guidance is weakest. -1: the preset's. "),
                *_inputs.advanced(_shape()),
                _inputs.strength(),
                *_inputs.window(),
            ],
            outputs=[io.Model.Output(display_name="model")],
        )

    @classmethod
    def execute(cls, model, start_percent: float, end_percent: float, **options) -> io.NodeOutput:
        window = Window(start_percent, end_percent)
        window.check(cls.NAME)
        stage = SAMGStage(cls.NAME, window, **options, node_id=_inputs.node_id(cls))
        if FOLLOW not in (stage.w_min, stage.w_max) and stage.w_min > stage.w_max:
            raise ValueError(
                f"{cls.NAME}: w_min ({stage.w_min:g}) must not be above w_max ({stage.w_max:g}); swap them."
            )
        if stage.strength == 0.0:
            return _inputs.unchanged(cls, model)
        return io.NodeOutput(add_stage(model, stage))


def _shape() -> list[io.Input]:
    return [
        io.Combo.Input(
            "normalize",
            options=["quantile", "minmax"],
            default="quantile",
            tooltip="What counts as strongest and weakest. quantile: what is left without the highest and lowest 1 %. "
            "minmax: the extremes, as in the paper; one odd point can decide the whole map.",
        ),
        io.Combo.Input(
            "curve",
            options=["linear", "bound"],
            default="linear",
            tooltip="How the scale follows from the energy. linear: as in the paper. bound: ours, the largest scale that "
            "moves no place further than w_min moves the strongest one.",
        ),
        io.Combo.Input(
            "scope",
            options=["clip", "frame"],
            default="clip",
            tooltip="Video only. clip: one range for all frames, no flicker. frame: each frame its own.",
        ),
    ]


def _scale(name: str, meaning: str) -> io.Float.Input:
    neutral = "Both equal to cfg: plain CFG."
    return io.Float.Input(name, default=FOLLOW, min=FOLLOW, max=100.0, step=0.1, tooltip=meaning + neutral)


class GimbalGuidancePreview(io.ComfyNode):
    NAME = "Guidance Preview (SAMG)"

    @classmethod
    def define_schema(cls) -> io.Schema:
        return _inputs.schema(
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
        calls = _preview.chosen(seen, columns)
        energy, scale = (
            [_preview.picked(call.maps[name], cls.NAME, sample) for call in calls] for name in ("energy", "scale")
        )
        names = _preview.captions(calls)
        low, high = min(float(one.min()) for one in scale), max(float(one.max()) for one in scale)
        means = [f"{name}\nmean {float(one.mean()):.3g}" for name, one in zip(names, scale, strict=True)]
        rows = [
            Row("Energy: mean square of cond - uncond over channels, each step in its own range", energy, names),
            Row("Scale: how strongly each place was guided", scale, means, low, high),
        ]
        return io.NodeOutput(strip(title, [f"{stage.settings()}.", *notes], rows))


NODES = [GimbalSAMG, GimbalGuidancePreview]
