"""Rows kept at calibrated noise levels, read between them."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor


def interpolated(where: str, levels: Tensor, sigma: float, row: Callable[[int], Tensor]) -> Tensor:
    """Of rows at decreasing levels: linear in log sigma, held outside; from a level of 0 nothing is interpolated."""
    if not sigma >= 0.0:
        raise ValueError(f"{where}: sigma is {sigma}; pass a noise level of at least 0.")
    above = int((levels >= sigma).sum()) - 1  # the last level that is not below sigma
    if above < 0:
        return row(0)
    start = float(levels[above])
    end = float(levels[above + 1]) if above + 1 < len(levels) else 0.0
    if end == 0.0:
        return row(above)
    return torch.lerp(row(above), row(above + 1), math.log(start / sigma) / math.log(start / end))
