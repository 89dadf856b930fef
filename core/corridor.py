"""The corridor that AQClip keeps each tile in, and its running average over the steps of a run."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from .normal import lower_ndtri
from .tiles import Grid, TileLayers, cover

EPSILON = 1e-8  # the eps of Alg. 1 line 7
RAREST = 1e-6  # quantiles of Eq. 2 stay this far from 0 and 1, where the normal distribution has no bound


class Corridor(NamedTuple):
    """[middle - half, middle + half] of each tile, (B, F, rows, columns), and the tiles that are left as they are."""

    middle: Tensor
    half: Tensor
    inactive: Tensor  # bool; there the other two may be anything

    def slope(self, alpha: float) -> Tensor:
        """Of tanh's argument."""
        return alpha / (self.half + EPSILON)

    def soft_limits(self, knee: float) -> tuple[Tensor, Tensor]:
        """How far from the middle smooth begins, and what remains from there to the bound."""
        return knee * self.half, ((1.0 - knee) * self.half).clamp_(min=torch.finfo(torch.float32).tiny)


def paper(mean: Tensor, variance: Tensor, certainty: Tensor) -> tuple[Tensor, Tensor]:
    """Middle and half of QSilk Eq. 2. The upper quantile by symmetry, float32 being coarse near 1."""
    rare = 0.5 * torch.stack((certainty, 1.0 - certainty)).square_()
    low, high = lower_ndtri(rare.clamp_(min=RAREST)).mul_(0.5 * variance.sqrt())  # both below the mean
    return mean + (low - high), -(low + high)


def widening(mean: Tensor, variance: Tensor, certainty: Tensor, k_min: float, k_max: float) -> tuple[Tensor, Tensor]:
    """Middle and half of mu -+ k(H) sd."""
    return mean, (certainty * (k_max - k_min)).add_(k_min).mul_(variance.sqrt())


def inactive(variance: Tensor, half: Tensor) -> Tensor:
    """Tiles of one value, those that hold a value that is not finite, and those of unknown confidence."""
    return ((variance > 0.0) & (half < math.inf)).logical_not_()


class AQClipState:
    """The running average (EMA) of the corridor over one sampling run.

    Make a new one for every run: there is no reset. A change of latent size, tile, stride, batch or device starts the
    average anew. A tile whose corridor is not finite at a step keeps the average it had.
    """

    def __init__(self) -> None:
        self._layout: tuple[object, ...] | None = None  # what the corridors below belong to
        self._step: object = None
        self._before: Tensor | None = None  # average up to the step before this one
        self._average: Tensor | None = None
        self._cover: tuple[Grid, TileLayers] | None = None

    def average(self, corridor: Tensor, beta: float, layout: tuple[object, ...], step: object = None) -> Tensor:
        """Take in this step's corridor and return the average: beta * average before this step + (1 - beta) * corridor.

        Calls that name the same step replace each other: all start from the average before that step. A step of None
        is always a new one. A beta of 0 returns the corridor.
        """
        layout = (*layout, corridor.shape, corridor.device)
        if layout != self._layout:
            self._before = self._average = None
        elif step is None or step != self._step:
            self._before = self._average
        self._layout, self._step = layout, step
        known = corridor.nan_to_num(math.nan, math.nan, math.nan)  # NaN where there is none
        self._average = known if self._before is None or beta == 0.0 else _mix(self._before, known, 1.0 - beta)
        return self._average

    def cover(self, grid: Grid, place: torch.device) -> TileLayers:
        """tiles.cover of this grid, made once."""
        if self._cover is None or self._cover[0] != grid or self._cover[1].share.device != place:
            self._cover = grid, cover(grid, place)
        return self._cover[1]


def _mix(before: Tensor, now: Tensor, weight: float) -> Tensor:
    """lerp, and where one of the two is NaN the other."""
    mixed = before.lerp(now, weight)
    either = now.where(now == now, before)
    return mixed.where(mixed == mixed, either)
