"""How Gaussian the error is: what its moments up to the second cannot say."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .moments import JointMoments

LIMIT, BINS = 5.0, 50  # of the histogram, in standard deviations; what lies beyond is in no bin


@dataclass(frozen=True, eq=False)
class Residual:
    """Of z, the part of the error that its regression on eps_hat leaves, in units of its own standard deviation.

    Each call is measured by its own regression and its own V, so that only the shape of the distribution is left.

    Attributes:
        count: (C,) int64, values taken in: none of channels without such a part.
        fourth: (C,) float64, sum of z^4.
        histogram: (BINS,) int64, of all channels, evenly from -LIMIT to LIMIT.
    """

    count: Tensor
    fourth: Tensor
    histogram: Tensor

    @classmethod
    def empty(cls, channels: int) -> Residual:
        whole = torch.int64
        return cls(torch.zeros(channels, dtype=whole), torch.zeros(channels).double(), torch.zeros(BINS, dtype=whole))

    @classmethod
    def of(cls, eps_hat: Tensor, delta: Tensor, moments: JointMoments) -> Residual:
        """Of one call, (B, C, *spatial) on the CPU, whose moments are given."""
        channels = moments.channels
        deviation = moments.conditional_variance().sqrt()
        noisy = deviation > 1e-9 * moments.error_power().sqrt()  # else it is rounding
        left = (delta - moments.mean_conditional(eps_hat)).movedim(1, 0).reshape(channels, -1)[noisy]
        z = (left / deviation[noisy, None]).double()
        count, fourth = torch.zeros(channels, dtype=torch.int64), torch.zeros(channels).double()
        count[noisy], fourth[noisy] = z.shape[1], z.pow(4).sum(1)
        places = ((z + LIMIT) * (BINS / (2 * LIMIT))).floor().long()
        return cls(count, fourth, torch.bincount(places[(places >= 0) & (places < BINS)], minlength=BINS))

    def __add__(self, other: Residual) -> Residual:
        return Residual(self.count + other.count, self.fourth + other.fourth, self.histogram + other.histogram)

    def excess_kurtosis(self) -> float:
        """Of all channels together: 0 for a Gaussian, above 0 for heavier tails; NaN where there is nothing."""
        total = int(self.count.sum())
        return float(self.fourth.sum()) / total - 3.0 if total else float("nan")
