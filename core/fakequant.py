"""Simulated quantization: numbers rounded to few levels and kept as floating point, to try formats nobody has made yet.

Symmetric round to nearest, as the simplest of real formats: q = 2^(bits - 1) - 1 levels on either side of 0, and one
scale = largest magnitude / q for each group of weights or token of activations. With a low-rank branch the form is
SVDQuant's (arXiv 2411.05007), without its smoothing: the main directions of a weight in full precision, the rest
rounded. Nothing is packed: it saves neither memory nor time.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

WEIGHT_BITS = (2, 8)
ACTIVATION_BITS = (4, 8)
WITH_EIGENSOLVER = ("cpu", "cuda")


class LowRank(NamedTuple):
    """A matrix of low rank, B @ A."""

    A: Tensor  # (rank, in)
    B: Tensor  # (out, rank)


class Split(NamedTuple):
    """A weight as residual + branch.B @ branch.A."""

    residual: Tensor  # (out, in), rounded
    branch: LowRank | None


def quantize_weight(weight: Tensor, bits: int, group: int | None = 64) -> Tensor:
    """Round each group of a row to 2^bits - 1 levels: q = 2^(bits - 1) - 1 on either side of 0, which stays 0.

    Args:
        weight: (out, in), any float dtype.
        bits: 2 to 8.
        group: neighbouring inputs that share a scale; a row's last group may be shorter. None: the whole row, one scale
            per output channel.
    Returns:
        Same shape, dtype and device, computed in float32: off by at most half a step, and by the dtype's own rounding.
        A group that holds NaN or infinity becomes NaN.
    Raises:
        ValueError: weight, bits or group is not as said above.
    """
    _check_weight("quantize_weight", weight)
    _check_bits("quantize_weight", bits, *WEIGHT_BITS)
    if group is not None and not (isinstance(group, int) and group >= 1):
        raise ValueError(f"quantize_weight: group is {group!r}; use a whole number from 1, or None for one per row.")
    inputs = weight.shape[1]
    group = inputs if group is None else min(group, inputs)
    padded = F.pad(weight.float(), (0, -inputs % group))  # zeros, which raise no scale
    rounded = _round(padded.unflatten(1, (-1, group)), bits).flatten(1)  # (out, groups, group) and back
    return rounded[:, :inputs].to(weight.dtype).contiguous()


def quantize_activations(x: Tensor, bits: int) -> Tensor:
    """Round each token, the features at one place of one sample, to 2^bits - 1 levels by its own largest magnitude.

    Args:
        x: (..., features), any float dtype.
        bits: 4 to 8.
    Returns:
        Same shape, dtype and device, computed in float32. A token depends on itself only.
    Raises:
        ValueError: x or bits is not as said above.
    """
    if not x.is_floating_point() or x.ndim < 1 or x.shape[-1] == 0:
        raise ValueError(f"quantize_activations: x is {x.dtype} {tuple(x.shape)}; pass floats of (..., features).")
    _check_bits("quantize_activations", bits, *ACTIVATION_BITS)
    return _round(x.float(), bits).to(x.dtype)


def low_rank(weight: Tensor, rank: int) -> LowRank:
    """The best approximation of a weight by a matrix of this rank: its largest singular directions.

    They come from the eigenvectors of weight @ weight.T, or of weight.T @ weight where that is the smaller: the same as
    from a singular value decomposition, several times faster, and without random numbers. In float32.

    Args:
        weight: (out, in), any float dtype, finite.
        rank: 1 to min(out, in).
    Returns:
        A (rank, in) and B (out, rank), with the weight's dtype and device.
    Raises:
        ValueError: weight or rank is not as said above.
    """
    _check_weight("low_rank", weight)
    if not isinstance(rank, int) or not 1 <= rank <= min(weight.shape):
        raise ValueError(
            f"low_rank: rank is {rank!r}; a weight of {tuple(weight.shape)} has 1 to {min(weight.shape)}."
        )
    matrix = weight.float() if weight.device.type in WITH_EIGENSOLVER else weight.float().cpu()
    if not matrix.isfinite().all():
        raise ValueError("low_rank: the weight holds NaN or infinity; look for a broken file.")
    matrix = matrix / matrix.abs().amax().clamp(
        min=torch.finfo(torch.float32).tiny
    )  # squares neither overflow nor vanish
    flat = matrix.shape[0] <= matrix.shape[1]
    gram = matrix @ matrix.T if flat else matrix.T @ matrix
    directions = torch.linalg.eigh(gram).eigenvectors[:, -rank:].flip(1).to(weight.device)  # largest first
    full = weight.float()
    A, B = (directions.T @ full, directions) if flat else (directions.T, full @ directions)
    return LowRank(A.to(weight.dtype).contiguous(), B.to(weight.dtype).contiguous())


def split(weight: Tensor, bits: int, group: int | None = 64, rank: int = 0, branch: LowRank | None = None) -> Split:
    """A weight as a low-rank branch in full precision and the rest, rounded.

    Args:
        weight, bits, group: as quantize_weight takes them.
        rank: of the branch; 0: no branch, the weight itself is rounded.
        branch: one that low_rank made earlier of this weight, to save that work. None: make it.
    Raises:
        ValueError: as quantize_weight and low_rank.
    """
    if rank == 0:
        return Split(quantize_weight(weight, bits, group), None)
    branch = low_rank(weight, rank) if branch is None else branch
    residual = weight.float() - branch.B.float() @ branch.A.float()
    return Split(quantize_weight(residual, bits, group).to(weight.dtype), branch)


def linear(x: Tensor, weight: Split, bias: Tensor | None = None, activation_bits: int | None = None) -> Tensor:
    """A linear layer as quantized hardware would compute it: only the low-rank branch sees x itself.

    Args:
        x: (..., in).
        weight: from `split`.
        bias: (out,), in full precision.
        activation_bits: 4 to 8; None leaves x in full precision.
    Returns:
        (..., out)
    """
    rounded = x if activation_bits is None else quantize_activations(x, activation_bits)
    y = F.linear(rounded, weight.residual, bias)
    return y if weight.branch is None else y + F.linear(F.linear(x, weight.branch.A), weight.branch.B)


def _round(x: Tensor, bits: int) -> Tensor:
    """x to the levels of its last dimension."""
    scale = x.abs().amax(-1, keepdim=True) / ((1 << bits - 1) - 1)
    scale = scale.masked_fill(scale == 0.0, 1.0)  # nothing but zeros
    return (x / scale).round_().mul_(scale)


def _check_weight(function: str, weight: Tensor) -> None:
    if not weight.is_floating_point() or weight.ndim != 2 or weight.numel() == 0:
        raise ValueError(f"{function}: weight is {weight.dtype} {tuple(weight.shape)}; pass floats of (out, in).")


def _check_bits(function: str, bits: int, low: int, high: int) -> None:
    if not isinstance(bits, int) or not low <= bits <= high:
        raise ValueError(f"{function}: bits is {bits!r}; use a whole number from {low} to {high}.")
