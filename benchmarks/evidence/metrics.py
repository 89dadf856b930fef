"""Measures of a set of samples, and statistics of measures over seeds. Nothing here knows the model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from scipy import stats
from torch import Tensor

FAR = 4.0  # standard deviations of real latents beyond which a value counts as tail
CONFIDENCE = 0.95


class Gaussian(NamedTuple):
    """Mean (D,) and covariance (D, D) of a set of features, float64."""

    mean: Tensor
    covariance: Tensor

    @classmethod
    def of(cls, features: Tensor) -> Gaussian:
        """features (N, D). The covariance is the unbiased one."""
        features = features.double()
        return cls(features.mean(0), torch.cov(features.T))


def frechet(a: Gaussian, b: Gaussian) -> float:
    """Squared Frechet distance: |mean_a - mean_b|^2 + trace(A + B - 2 (A B)^(1/2)).

    With sqrt(A) symmetric, A B has the eigenvalues of sqrt(A) B sqrt(A), which is symmetric too.
    """
    values, vectors = torch.linalg.eigh(a.covariance)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    cross = torch.linalg.eigvalsh(root @ b.covariance @ root).clamp(min=0).sqrt().sum()
    apart = (a.mean - b.mean).square().sum()
    return float(apart + a.covariance.trace() + b.covariance.trace() - 2 * cross)


def tail_share(latents: Tensor, mean: Tensor, std: Tensor) -> float:
    """Share of values further than FAR of std from mean; latents (N, C, *spatial), mean and std (C,)."""
    return float((_standardised(latents, mean, std).abs() > FAR).float().mean())


def kurtosis(latents: Tensor) -> float:
    """Fourth standardised moment of a channel's values, mean over channels: 3 for a normal distribution."""
    rows = latents.transpose(0, 1).flatten(1).double()
    centred = rows - rows.mean(1, keepdim=True)
    return float((centred.pow(4).mean(1) / centred.square().mean(1).square()).mean())


def _standardised(latents: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    shape = (1, -1, *[1] * (latents.ndim - 2))
    return (latents - mean.reshape(shape)) / std.reshape(shape)


class Estimate(NamedTuple):
    """Mean over n seeds, its standard error, and half the width of its t interval. nan where n = 1."""

    mean: float
    error: float
    half: float
    n: int

    @property
    def word(self) -> str:
        """For a difference in something of which less is better."""
        if self.n < 2 or not abs(self.mean) > self.half:
            return "no difference"
        return "better" if self.mean < 0 else "worse"


def estimate(values: Sequence[float]) -> Estimate:
    values = [value for value in values if not math.isnan(value)]
    n = len(values)
    if n == 0:
        return Estimate(math.nan, math.nan, math.nan, 0)
    mean = math.fsum(values) / n
    if n == 1:
        return Estimate(mean, math.nan, math.nan, 1)
    error = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1) / n)
    return Estimate(mean, error, error * float(stats.t.ppf((1 + CONFIDENCE) / 2, n - 1)), n)


def paired(values: Sequence[float], baseline: Sequence[float]) -> Estimate:
    """Of value - baseline, seed by seed."""
    return estimate([value - base for value, base in zip(values, baseline, strict=True)])


def at_equal(x: float, xs: Sequence[float], ys: Sequence[float]) -> float:
    """y where the polyline through (xs, ys) passes x. nan where it does not reach x, or passes x more than once.

    A curve that has gone flat in x passes it many times: then there is no such thing as "at equal x".
    """
    found = set()
    for (x0, y0), (x1, y1) in pairwise(zip(xs, ys, strict=True)):
        if x0 == x1 == x:
            return math.nan
        if min(x0, x1) <= x <= max(x0, x1) and x0 != x1:
            found.add(round(y0 + (y1 - y0) * (x - x0) / (x1 - x0), 9))
    return found.pop() if len(found) == 1 else math.nan
