"""Broadcasting helpers shared by the kernels."""

from __future__ import annotations

from torch import Tensor


def expand_like(per_sample: Tensor, x: Tensor) -> Tensor:
    """View a (B,) tensor as (B, 1, ..., 1) so that it broadcasts against x of shape (B, C, *spatial)."""
    return per_sample.reshape(-1, *[1] * (x.ndim - 1))
