"""Quantiles in few operators that never wait for the device: what core/quantile.py does on an accelerator."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

WEIGHT_BITS = 25  # of a rank's fraction; float32 keeps 24


def quantiles(flat: Tensor, levels: Sequence[float]) -> Tensor:
    """Quantiles of each row over its finite elements, NaN where it has none: flat (B, n) float32 -> (levels, B) float32.

    Each quantile lies among the k smallest or the k largest elements. Fewer finite elements need no more of them, so k
    is known without looking at values.
    """
    size = flat.shape[1]
    large = [level > 0.5 for level in levels]
    nearer = [1.0 - level if top else level for level, top in zip(levels, large, strict=True)]
    k = min(max(int(near * (size - 1)) for near in nearer) + 3, size)  # 1 for each neighbour, 1 for rounding here
    tails = {}
    rising = torch.nan_to_num(flat, torch.inf, torch.inf, torch.inf)  # what is not finite ranks behind all else
    if False in large:
        tails[False] = rising.topk(k, 1, largest=False).values
    if True in large:
        tails[True] = torch.nan_to_num(flat, -torch.inf, -torch.inf, -torch.inf).topk(k, 1).values
    last = (rising < torch.inf).sum(1).sub_(1).clamp_(min=0)  # (B,), the rank of the largest finite element

    bits = _fraction_bits(nearer, size)
    ranks = torch.stack([_rank(last, level, top, bits) for level, top in zip(levels, large, strict=True)])
    whole = 2**bits - 1
    weight = (ranks & whole) * 2.0**-bits  # (levels, B)
    index = (torch.stack((ranks, ranks + whole), -1) >> bits).abs_()  # (levels, B, 2): rounded down, rounded up
    below, above = torch.stack([tails[top] for top in large]).gather(2, index).unbind(2)
    return below.lerp(above, weight)


def _fraction_bits(nearer: Sequence[float], size: int) -> int:
    """How many bits a rank's fraction may have in int64; 0 where there are too few for one factor to be exact enough."""
    bits = min(61 - max(int(near * size) for near in nearer).bit_length(), 52)
    return bits if bits >= WEIGHT_BITS + size.bit_length() else 30


def _rank(last: Tensor, level: float, top: bool, bits: int) -> Tensor:
    """level * last as a fixed-point number. From the top: less last, so that it counts down from 0 at the largest."""
    if bits > 30:
        exact: Tensor = last * round((level - 1.0 if top else level) * 2**bits)  # level - 1 is exact
        return exact
    high, low = divmod(round(level * 2**60), 2**30)
    rank: Tensor = torch.add(last * low >> 30, last, alpha=high - 2**30 if top else high)
    return rank
