"""Moment matching band by band: the state's deviation at each scale, not its deviation as a whole.

A quantized model may smooth fine structure and amplify coarse structure (or the reverse); one gain per channel can set the
sum of both right and leave each wrong. Here each channel has a gain for each ring of spatial frequencies.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from gimbal.core.plan import Plan
from gimbal.core.solvers import run

from .calibrate import Denoise

COUNT = 4  # rings of equal width, from 0 to the diagonal's highest frequency


class BandMap(NamedTuple):
    """What is done to the state after a step: gains (C, COUNT), of what remains when the mean (C,) is off; mean and new
    mean (C,)."""

    gains: Tensor
    mean: Tensor
    new_mean: Tensor


def band_maps(plan: Plan, full: Denoise, quantized: Denoise, x: Tensor) -> list[BandMap]:
    """Closed loop, as `calibrate.state_maps`, from the runs' power in each band, pooled."""
    wanted: list[tuple[Tensor, Tensor]] = []
    maps: list[BandMap] = []

    def measure(step: int, state: Tensor) -> Tensor:
        wanted.append(_moments(state))
        return state

    def fit(step: int, state: Tensor) -> Tensor:
        (mean, power), (new_mean, new_power) = _moments(state), wanted[step]
        gains = (new_power / power).sqrt().where(power > 0, 1.0)
        maps.append(BandMap(gains, mean, new_mean))
        return mapped(state, maps[-1])

    run(plan, full, x, after_step=measure)
    run(plan, quantized, x, after_step=fit)
    return maps


def mapped(state: Tensor, found: BandMap) -> Tensor:
    """state (N, C, h, w), on any canvas: the bands are of cycles per position."""
    gains, mean, new_mean = (part.to(state.dtype) for part in found)
    waves = torch.fft.rfft2(state - mean.view(-1, 1, 1), norm="ortho")
    changed = waves * gains[:, rings(*state.shape[-2:])]
    return torch.fft.irfft2(changed, s=state.shape[-2:], norm="ortho") + new_mean.view(-1, 1, 1)


def _moments(state: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (C,) and mean power in each band (C, COUNT), float64."""
    state = state.double()
    mean = state.mean((0, 2, 3))
    power = torch.fft.fft2(state - mean.view(-1, 1, 1), norm="ortho").abs().square().mean(0)
    bands = rings(*state.shape[-2:], half=False).flatten()
    sums = torch.zeros(len(mean), COUNT, dtype=power.dtype).index_add_(1, bands, power.flatten(1))
    return mean, sums / bands.bincount(minlength=COUNT)


def rings(height: int, width: int, half: bool = True) -> Tensor:
    """The band (height, width) of each frequency of fft2, or with `half` of rfft2."""
    across = torch.fft.rfftfreq(width) if half else torch.fft.fftfreq(width)
    radius = torch.hypot(torch.fft.fftfreq(height)[:, None], across)
    return (radius * (COUNT / 0.5**0.5)).long().clamp(max=COUNT - 1)
