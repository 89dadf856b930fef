"""Exact per-sample quantiles that neither sort nor copy everything, for latents of any size."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor

from . import device, quantile_device

# Elements per chunk, widest first. Wide chunks make the first pass cheap, narrow ones leave fewer candidates.
CHUNKS = (64, 32)
# Elements the CPU looks at together: they stay in cache, and torch starts threads for 32768 and up. In a chain of small
# steps waiting for a thread costs about what it saves, and far more where another process holds its core.
PIECE = 30720
Count = TypeVar("Count", int, Tensor)


def sample_quantiles(x: Tensor, q: Sequence[float] | float) -> Tensor:
    """Quantiles of each sample over all its finite elements, with linear interpolation.

    Source: the quantiles of QSilk Eq. 1, as torch.quantile defines them. Differences from it: no limit on the number
    of elements; half precision is accepted; the rank q * (n - 1) is exact, where torch.quantile rounds it to float32
    (off by up to half a rank at 2^24 elements); NaN and infinities take no part instead of turning all into NaN.

    Args:
        x: (B, ...), any float dtype, at least one element per sample. float64 is rounded to float32 first, so a
            magnitude beyond float32's range counts as infinite.
        q: one quantile or several, each in [0, 1]; 0 is the smallest finite element, 1 the largest.
    Returns:
        (len(q), B), float32, on x's device. Sample b depends on sample b only; NaN where it has no finite element.
        Off the CPU nothing waits for the device.
    Raises:
        ValueError: x is not a float tensor with a batch and an element, or a quantile is out of [0, 1].
    """
    levels = _checked_levels(x, q)
    flat = x.detach().flatten(1).float()  # (B, n)
    batch, size = flat.shape
    if batch == 0:
        return flat.new_empty(len(levels), 0)
    if not device.on_host(x):
        return quantile_device.quantiles(flat, levels)

    # Each quantile is read from the end it is nearer to; one search per end serves all quantiles there.
    depths = {False: 0, True: 0}  # largest: how many elements
    for level in levels:
        depths[level > 0.5] = max(depths[level > 0.5], _depth(level, size, level > 0.5))
    width = next((width for width in CHUNKS if 2 * max(depths.values()) * width <= size), None)
    all_finite, extremes = _examined(flat, width)
    wanted = {largest: k for largest, k in depths.items() if k > 0}
    if all_finite:
        known = dict.fromkeys(depths) if extremes is None else {largest: extremes[int(largest)] for largest in depths}
        tails = {largest: _tail(flat, k, largest, width, known[largest]) for largest, k in wanted.items()}
        return torch.stack([_interpolate(tails[level > 0.5], level, size, level > 0.5) for level in levels])

    finite = flat.isfinite()
    tails = {}
    for largest, k in wanted.items():  # what is not finite ranks behind all else
        tails[largest] = _tail(flat.where(finite, -torch.inf if largest else torch.inf), k, largest, width)
    count = finite.sum(1)  # (B,)
    return torch.stack([_interpolate_counted(tails[level > 0.5], level, count, level > 0.5) for level in levels])


def _checked_levels(x: Tensor, q: Sequence[float] | float) -> list[float]:
    if not x.is_floating_point():
        raise ValueError(f"sample_quantiles: x has dtype {x.dtype}; convert it to a float dtype.")
    if x.ndim < 2 or x[:1].numel() == 0 < x.shape[0]:
        raise ValueError(f"sample_quantiles: x has shape {tuple(x.shape)}; pass (B, ...) with at least one element.")
    levels = [float(q)] if isinstance(q, (int, float)) else [float(level) for level in q]
    if not levels or not all(0.0 <= level <= 1.0 for level in levels):
        raise ValueError(f"sample_quantiles: q is {q}; pass one or more quantiles between 0 and 1.")
    return levels


def _examined(flat: Tensor, width: int | None) -> tuple[bool, Tensor | None]:
    """Whether all is finite, and what tells it and is needed anyway: chunk minima and maxima (2, B, chunks)."""
    if width is None:
        return _all_finite(flat), None
    chunks, rest = _chunked(flat, width)
    extremes = chunks.new_empty(2, *chunks.shape[:2])
    torch.amin(chunks, 2, out=extremes[0])
    torch.amax(chunks, 2, out=extremes[1])
    return _all_finite(extremes) and _all_finite(rest), extremes


def _all_finite(values: Tensor) -> bool:
    if values.numel() == 0:
        return True
    for piece in values.reshape(-1).split(PIECE):
        low, high = piece.aminmax()  # NaN in any element makes both NaN
        if not (math.isfinite(low.item()) and math.isfinite(high.item())):
            return False
    return True


def _fixed_point_rank(level: float, count: Count) -> Count:
    """level * (count - 1) * 2^30. In whole numbers: float32 cannot hold a rank, Apple GPUs have no float64."""
    high, low = divmod(round(level * 2**60), 2**30)
    return (count - 1) * high + ((count - 1) * low >> 30)


def _depth(level: float, size: int, largest: bool) -> int:
    """How many elements from its end hold this quantile's two neighbours; fewer finite elements need no more."""
    rank = _fixed_point_rank(level, size) >> 30
    return size - rank if largest else min(rank + 2, size)


def _interpolate(tail: Tensor, level: float, size: int, largest: bool) -> Tensor:
    below, weight = divmod(_fixed_point_rank(level, size), 2**30)
    above = min(below + 1, size - 1)
    if largest:
        below, above = size - 1 - below, size - 1 - above
    return tail[:, below].lerp(tail[:, above], weight / 2**30)


def _interpolate_counted(tail: Tensor, level: float, count: Tensor, largest: bool) -> Tensor:
    """The same where `count` (B,) elements of each sample are finite; NaN where none is."""
    last = (count - 1).clamp(min=0)
    rank = _fixed_point_rank(level, last + 1)  # (B,)
    weight = (rank & (2**30 - 1)).float() / 2**30
    below = rank >> 30
    ranks = torch.stack([below, torch.minimum(below + 1, last)], 1)  # (B, 2)
    if largest:
        ranks = last[:, None] - ranks
    below_value, above_value = tail.gather(1, ranks).unbind(1)
    return below_value.lerp(above_value, weight).where(count > 0, torch.nan)


def _tail(flat: Tensor, k: int, largest: bool, width: int | None, extremes: Tensor | None = None) -> Tensor:
    """The k largest or smallest of each row, sorted; flat (B, n) without NaN -> (B, k).

    They lie in the k chunks whose own extremes are the most extreme. Were one in another chunk, each of the k chosen
    chunks would hold an element at least as extreme, so one of those can take its place.
    """
    if width is None:
        return flat.topk(k, dim=1, largest=largest).values
    chunks, rest = _chunked(flat, width)
    if extremes is None:
        extremes = chunks.amax(2) if largest else chunks.amin(2)
    bounds, chosen = extremes.topk(k, dim=1, largest=largest, sorted=False)  # (B, k)
    samples = zip(chunks.unbind(), chosen.unbind(), bounds.unbind(), rest.unbind(), strict=True)
    rows = [_candidates(*sample, largest) for sample in samples]
    return torch.stack([row.topk(k, largest=largest).values for row in rows])


def _chunked(flat: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Views: (B, chunks, width), and what is left over at the end, (B, fewer than width)."""
    whole = flat.shape[1] - flat.shape[1] % width
    return flat[:, :whole].view(len(flat), -1, width), flat[:, whole:]


def _candidates(chunks: Tensor, chosen: Tensor, bounds: Tensor, rest: Tensor, largest: bool) -> Tensor:
    """What reaches the weakest of the chosen chunks' extremes: k elements at least, as a rule few more."""
    bound = bounds.amin() if largest else bounds.amax()
    kept = [rest] if rest.numel() else []
    for part in chosen.split(PIECE // chunks.shape[1]):
        row = chunks.index_select(0, part).view(-1)
        kept.append(row[row >= bound] if largest else row[row <= bound])
    return torch.cat(kept) if len(kept) > 1 else kept[0]
