"""PTQD (He et al., NeurIPS 2023, arXiv 2305.10657): quantization noise split into a correlated and a residual part."""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import Tensor, zeros_like

from gimbal.calibration.statistics import QDriftStatistics

Terms = Callable[[float], tuple[Tensor, Tensor, Tensor]]


def split(statistics: QDriftStatistics, pooled: bool = True) -> Terms:
    """eps_hat = (1 + k) eps + q by step, k the correlation coefficient and q with a mean per channel, so that
    (eps_hat - mean q) / (1 + k) takes the place of eps_hat, as `make_plan` takes a bias. Deterministic samplers draw no
    noise that could absorb q's variance, which the paper does with the others.

    pooled: one k for all channels, as in the paper; else one for each.
    """

    def terms(sigma: float) -> tuple[Tensor, Tensor, Tensor]:
        index = int((statistics.sigma.log() - math.log(sigma)).abs().argmin())
        moments = statistics.moments(index)
        square, product, error = moments.m2  # of eps_hat, eps_hat with the error, the error; eps = eps_hat - error
        covariance, variance = square - product, square - 2 * product + error
        gain = covariance.sum() / variance.sum() if pooled else covariance / variance
        mean_hat, mean_error = moments.mean
        start = mean_hat - gain * (mean_hat - mean_error)
        slope = (1 - 1 / gain).expand_as(start)
        return slope, zeros_like(start), start / gain

    return terms
