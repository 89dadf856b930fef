"""Inputs that every node has in common, worded once."""

from __future__ import annotations

from comfy_api.latest import io


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
