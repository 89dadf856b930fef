"""Class conditioning in the shape a text encoder would give: a few context tokens and a pooled vector."""

from __future__ import annotations

import torch
from torch import Tensor

CLASSES = "GIMBALEKRS"
WIDTH = 32
TOKENS = 2


def labels(text: str) -> Tensor:
    """Class indices (N,) of the letters of `text`. ValueError for an unknown or missing letter."""
    unknown = sorted(set(text.upper()) - set(CLASSES))
    if unknown or not text:
        raise ValueError(
            f"Try it: Letters: text {text!r} must be letters out of {CLASSES}; "
            + (f"leave out {' '.join(unknown)}." if unknown else "type at least one.")
        )
    return torch.tensor([CLASSES.index(letter) for letter in text.upper()])


def codes(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Class indices (N,) to context (N, TOKENS, WIDTH) and pooled (N, WIDTH). A negative index is "no class": zeros."""
    pooled = torch.zeros(len(labels), WIDTH)
    known = labels >= 0
    pooled[known, labels[known]] = 4.0
    return pooled[:, None].repeat(1, TOKENS, 1), pooled
