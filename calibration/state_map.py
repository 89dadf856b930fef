"""Moment matching's maps: what is done to the state after each step of a sampler (METHODS.md section 4.3)."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class StateMap:
    """T affine maps x -> scale x + shift, one for each step of the schedule that they were found on.

    A map makes good what a quantized model does to the state's mean and deviation in one step, so it belongs to a step of
    that length. For other steps it is shared out over the step's interval of sigma, evenly, as the error of a step is
    d sigma times that of the model's output; a step takes what it covers, in order. On the schedule's own steps that
    gives the stored maps.

    Attributes:
        start: the noise level at which the first step begins. sigma: (T,), decreasing below it, where each step ends.
        scale, shift: (T, C) float32.
    """

    start: float
    sigma: Tensor
    scale: Tensor
    shift: Tensor

    def between(self, sigma: float, sigma_end: float, strength: float = 1.0) -> tuple[Tensor, Tensor]:
        """The map of a step from sigma to sigma_end.

        Args:
            sigma, sigma_end: noise levels, sigma > sigma_end >= 0. What lies outside the calibrated range is left alone.
            strength: 0 is no map, 1 the whole; between, the same share of each map; above 1 more of it.
        Returns:
            scale, shift: (C,) float64.
        Raises:
            ValueError: the levels do not fall.
        """
        if not sigma > sigma_end >= 0.0:
            raise ValueError(
                f"StateMap.between: from sigma {sigma} to {sigma_end}; noise levels must fall, to 0 at most."
            )
        total_scale = torch.ones(self.scale.shape[1], dtype=torch.float64, device="cpu")
        total_shift = torch.zeros_like(total_scale)
        for i, (high, low) in enumerate(pairwise([self.start, *self.sigma.tolist()])):
            covered = min(sigma, high) - max(sigma_end, low)
            # The same schedule, computed on two machines, may differ in float32's last bits.
            if covered <= 1e-6 * (high - low):
                continue
            share = strength * min(1.0, covered / (high - low))
            scale, shift = power(self.scale[i].double(), self.shift[i].double(), share)
            total_scale, total_shift = scale * total_scale, scale * total_shift + shift
        return total_scale, total_shift


def power(scale: Tensor, shift: Tensor, exponent: float) -> tuple[Tensor, Tensor]:
    """The affine map x -> scale x + shift done `exponent` times: powers follow one another as their exponents add up.

    Args:
        scale, shift: (C,) float64, scale >= 0. exponent: >= 0.
    """
    change = scale - 1.0
    grown = torch.expm1(exponent * torch.log1p(change)) if exponent else torch.zeros_like(change)  # scale^e - 1
    factor = torch.where(change == 0.0, exponent, grown / change)
    return 1.0 + grown, shift * factor
