"""Class conditioning in the shape a text encoder would give: a few context tokens and a pooled vector."""

from __future__ import annotations

import torch
from torch import Tensor

WIDTH = 32
TOKENS = 2


def codes(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Class indices (N,) to context (N, TOKENS, WIDTH) and pooled (N, WIDTH). A negative index is "no class": zeros."""
    pooled = torch.zeros(len(labels), WIDTH)
    known = labels >= 0
    pooled[known, labels[known]] = 4.0
    return pooled[:, None].repeat(1, TOKENS, 1), pooled
