"""Inputs that nodes have in common, worded once, and what they ask of the graph that they stand in."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..host import identity

Statistics = io.Custom("QDRIFT_STATS")


def strength() -> io.Float.Input:
    return io.Float.Input(
        "strength",
        default=1.0,
        min=0.0,
        max=1.0,
        step=0.05,
        tooltip="How much of the correction is applied. 1 is all of it; 0 changes nothing, bit for bit.",
    )


def window() -> list[io.Input]:
    return [
        io.Float.Input(
            "start_percent",
            default=0.0,
            min=0.0,
            max=1.0,
            step=0.01,
            tooltip="Where in the noise schedule it starts to act. 0 is the first step, pure noise.",
        ),
        io.Float.Input(
            "end_percent",
            default=1.0,
            min=0.0,
            max=1.0,
            step=0.01,
            tooltip="Where in the noise schedule it stops. 1 is the last step. start 0 and end 1 act on every step.",
        ),
    ]


def unique_id(cls: type[io.ComfyNode]) -> str | None:
    return cls.hidden.unique_id if cls.hidden is not None else None


def name_of(cls: type[io.ComfyNode], model: Any, name: str) -> str:
    """The model's file at the input `name`, as the queued graph has it."""
    graph = cls.hidden.prompt if cls.hidden is not None else None
    return identity.model_name(model, graph, unique_id(cls), name)
