"""What the preview nodes have in common: which run to show, which of its steps, and in which words."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import torch
from comfy_api.latest import io
from torch import Tensor

from ..host.pictures.maps import strip
from ..host.sampling.hooks import stages_of
from ..host.sampling.observe import CallMaps, RunMaps
from ..host.sampling.stages import Stage

logger = logging.getLogger(__name__)


def inputs() -> list[io.Input]:
    return [
        io.Int.Input(
            "columns", default=8, min=1, max=32, tooltip="How many of the run's steps to show, evenly spaced."
        ),
        io.Int.Input(
            "sample",
            default=0,
            min=0,
            max=3,
            tooltip="Which picture of the batch, from 0. The first four are kept; of a video the middle frame.",
        ),
    ]


def observed(
    node: str, model: object, samples: Tensor, accepts: Callable[[Stage], bool], carrier: str
) -> tuple[Stage, RunMaps | None, list[str]]:
    """The stage to show, the run it saw, and what has to be said about them.

    Raises:
        ValueError: the model carries no such stage.
    """
    stages = [stage for stage in stages_of(model) if accepts(stage)]
    if not stages:
        raise ValueError(f"{node}: this model carries no {carrier}; connect the model that also goes to the sampler.")
    found = [(stage, *stage.observer.run_that_made(samples)) for stage in stages]
    stage, seen, made_these = next((entry for entry in reversed(found) if entry[2]), found[-1])
    if made_these:
        return stage, seen, []
    if seen is None:
        note = (
            f"Nothing seen yet: no run of this {stage.node} has reached it. "
            "If the sampler's result came from ComfyUI's cache, change its seed and queue again."
        )
    else:
        note = "The latest run that was seen. It did not make the latent that is connected here."
    logger.warning("%s: %s", node, note)
    return stage, seen, [note]


def nothing(title: str, notes: Sequence[str]) -> Tensor:
    return strip(title, notes, [])


def chosen(seen: RunMaps, columns: int) -> list[CallMaps]:
    """Evenly spaced calls, first and last among them."""
    places = torch.linspace(0, len(seen.calls) - 1, min(columns, len(seen.calls))).round().int().tolist()
    return [seen.calls[i] for i in dict.fromkeys(places)]


def picked(one: Tensor, node: str, sample: int) -> Tensor:
    """(h, w) of a map (samples, h, w)."""
    if sample >= len(one):
        raise ValueError(
            f"{node}: sample is {sample}, but {len(one)} were kept of the batch; choose 0 to {len(one) - 1}."
        )
    return one[sample]


def captions(calls: Sequence[CallMaps]) -> list[str]:
    return [f"step {call.step + 1}, sigma {call.sigma:.3g}" for call in calls]
