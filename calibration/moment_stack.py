"""Joint moments of all sigmas of a schedule: merged over runs, and as the tensors that a statistics file holds."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .moments import JointMoments


def merged(runs: Sequence[Sequence[JointMoments]]) -> list[JointMoments]:
    """Moments at each of S sigmas, of all runs together. runs: at least one, S moments each."""
    total = list(runs[0])
    for run in runs[1:]:
        total = [moments.merge(other) for moments, other in zip(total, run, strict=True)]
    return total


def stacked(moments: Sequence[JointMoments]) -> tuple[Tensor, Tensor, Tensor]:
    """Count (S,), mean (S, 2, C) and m2 (S, 3, C)."""
    counts = torch.tensor([each.count for each in moments], dtype=torch.int64)
    return counts, torch.stack([each.mean for each in moments]), torch.stack([each.m2 for each in moments])
