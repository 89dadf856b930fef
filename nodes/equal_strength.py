"""Compare at Equal Strength: is a patched model better, or only weaker or stronger?"""

from __future__ import annotations

from functools import partial
from typing import Any

import comfy.samplers
from comfy_api.latest import io

from ..host.comparing import compare, ksampler
from . import _inputs


def _sampling() -> list[io.Input]:
    """KSampler's inputs."""
    return [
        io.Conditioning.Input("positive", tooltip="Used by both models."),
        io.Conditioning.Input("negative", tooltip="Used by both models."),
        io.Latent.Input(
            "latent_image", tooltip="A batch gives a more reliable answer than one picture; it is matched as a whole."
        ),
        io.Int.Input(
            "seed",
            default=0,
            min=0,
            max=0xFFFFFFFFFFFFFFFF,
            control_after_generate=True,
            tooltip="The same noise for every run.",
        ),
        io.Int.Input("steps", default=20, min=1, max=10000, tooltip="Sampling steps of every run."),
        io.Float.Input("cfg", default=7.0, min=1.0, max=100.0, step=0.1, round=0.01, tooltip="Of the patched model."),
        io.Combo.Input(
            "sampler_name",
            options=list(comfy.samplers.KSampler.SAMPLERS),
            default="euler",
            tooltip="Used by both models.",
        ),
        io.Combo.Input(
            "scheduler",
            options=list(comfy.samplers.KSampler.SCHEDULERS),
            default="normal",
            tooltip="Used by both models.",
        ),
        *_inputs.advanced([_denoise()]),
    ]


def _denoise() -> io.Input:
    return io.Float.Input(
        "denoise",
        default=1.0,
        min=0.0,
        max=1.0,
        step=0.01,
        tooltip="1 starts from pure noise; less keeps part of latent_image.",
    )


def _search() -> list[io.Input]:
    """For the plain cfg."""
    return [
        io.Float.Input(
            "tolerance",
            default=0.5,
            min=0.05,
            max=10.0,
            step=0.05,
            tooltip="How close the deviations have to be, in percent. A smaller value may take more runs.",
        ),
        io.Int.Input("max_runs", default=5, min=1, max=20, tooltip="Runs of the plain model, at most."),
    ]


class GimbalEqualStrength(io.ComfyNode):
    NAME = "Compare at Equal Strength"

    @classmethod
    def define_schema(cls) -> io.Schema:
        return _inputs.schema(
            node_id="GimbalEqualStrength",
            display_name=cls.NAME,
            category="gimbal/guidance",
            search=("compare", "better", "weaker", "same strength", "contrast"),
            description="Samples a patched model, finds the plain cfg whose latents are as strong (have the same deviation), "
            "and gives both. A patch that only weakens or strengthens guidance looks no better than that plain cfg.",
            inputs=[
                io.Model.Input("model", tooltip="With the patches to judge. It is sampled once, at cfg."),
                io.Model.Input(
                    "plain_model", tooltip="The same model without them. It is sampled up to max_runs times."
                ),
                *_sampling(),
                *_inputs.advanced(_search()),
            ],
            outputs=[
                io.Latent.Output(display_name="patched"),
                io.Latent.Output(display_name="plain"),
                io.Float.Output(display_name="plain_cfg"),
                io.String.Output(display_name="text"),
            ],
        )

    @classmethod
    def execute(cls, model, plain_model, cfg: float, tolerance: float, max_runs: int, **options: Any) -> io.NodeOutput:
        said = _inputs.messages(cls)
        found = compare(said, model, plain_model, partial(ksampler, **options), cfg, max_runs, tolerance / 100)
        return io.NodeOutput(found.patched, found.plain, found.chosen.scale, found.text())


NODES = [GimbalEqualStrength]
