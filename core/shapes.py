"""Small conversions of tensors, shared by the kernels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def expand_like(per_sample: Tensor, x: Tensor) -> Tensor:
    """View a (B,) tensor as (B, 1, ..., 1) so that it broadcasts against x of shape (B, C, *spatial)."""
    return per_sample.reshape(-1, *[1] * (x.ndim - 1))


def to_float64(values: Tensor | float | Sequence[float]) -> Tensor:
    """values as float64 on the CPU, without a detour through float32."""
    if isinstance(values, Tensor):
        return values.detach().cpu().double()
    return torch.DoubleTensor(list(values) if isinstance(values, Sequence) else [values]).reshape(
        (len(values),) if isinstance(values, Sequence) else ()
    )
