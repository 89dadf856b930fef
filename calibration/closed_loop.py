"""The closed loop of moment matching: every map is found where the earlier ones have led (METHODS.md section 4.3)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from ..core.match import MomentMatcher
from .moments import StateMoments, match


class SteppedRun(Protocol):
    """A run of the quantized model that goes on step by step; its state may be exchanged in between."""

    state: Tensor  # (B, C, *spatial)

    def step(self) -> None: ...


def match_states(
    runs: Sequence[SteppedRun], wanted: Sequence[StateMoments], on_step: Callable[[], None] = lambda: None
) -> tuple[Tensor, Tensor]:
    """The maps that give the runs' states, after each step, full precision's moments. The runs end mapped.

    Args:
        runs: at their start. All take a step, then all are mapped, before any goes on.
        wanted: full precision's moments after each step, over the same runs.
        on_step: called after each step of each run.
    Returns:
        scale, shift: (steps, C) float64.
    Raises:
        ValueError: a state is NaN or infinite, or has other channels than wanted.
    """
    maps = []
    for target in wanted:
        found = StateMoments(target.channels)
        for run in runs:
            run.step()
            found.update(run.state)
            on_step()
        maps.append(match(target, found))
        matching = MomentMatcher([maps[-1]])
        for run in runs:
            run.state = matching(0, run.state)
    scales, shifts = zip(*maps, strict=True)
    return torch.stack(scales), torch.stack(shifts)
