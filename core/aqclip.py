"""AQClip: clip each tile of a latent softly into a corridor around its own mean, as wide as the tile is certain."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from .confidence import gradient_confidence
from .tiles import Block, Grid, as_frames, blocks, tile_grid, tile_statistics

EPSILON = 1e-8  # the eps of Alg. 1 line 7
RAREST = 1e-6  # quantiles of Eq. 2 stay this far from 0 and 1, where the normal distribution has no bound


class AQClipState:
    """The running average (EMA) of the corridor over one sampling run.

    Make a new one for every run: there is no reset. A change of latent size, tile, stride, batch or device starts the
    average anew.
    """

    def __init__(self) -> None:
        self._layout: tuple | None = None  # what the corridors below belong to
        self._step: object = None
        self._before: Tensor | None = None  # average up to the step before this one
        self._average: Tensor | None = None

    def average(self, corridor: Tensor, beta: float, layout: tuple, step: object = None) -> Tensor:
        """Take in this step's corridor and return the average: beta * average before this step + (1 - beta) * corridor.

        Calls that name the same step replace each other: all start from the average before that step. A step of None
        is always a new one.
        """
        layout = (*layout, corridor.shape, corridor.device)
        if layout != self._layout:
            self._before = self._average = None
        elif step is None or step != self._step:
            self._before = self._average
        self._layout, self._step = layout, step
        self._average = corridor if self._before is None else self._before.lerp(corridor, 1.0 - beta)
        return self._average


@torch.no_grad()
def aqclip(
    x: Tensor,
    tile: int = 32,
    stride: int = 16,
    alpha: float = 2.0,
    ema_beta: float = 0.8,
    confidence: Tensor | None = None,
    corridor: Literal["paper", "widening"] = "widening",
    form: Literal["tanh", "smooth"] = "smooth",
    state: AQClipState | None = None,
    *,
    step: object = None,
    knee: float = 0.8,
    k_min: float = 2.5,
    k_max: float = 4.5,
) -> Tensor:
    """Clip every tile softly into its corridor [l, h] and blend the overlapping tiles evenly.

    Source: QSilk Sec. 3.2-3.3, Eq. 2 and Alg. 1, as METHODS.md section 2 reads them. With mu and sd the mean and
    (population) standard deviation of a tile over channels and positions, H its confidence, m = (l + h) / 2 and
    d = (h - l) / 2:
      corridor  paper     Eq. 2: l = mu + ndtri(H^2 / 2) sd, h = mu + ndtri(1 - (1 - H)^2 / 2) sd. It slides with H,
                          from [mu - 4.9 sd, mu] to [mu, mu + 4.9 sd], rather than widen.
                widening  ours: mu -+ (k_min + (k_max - k_min) H) sd.
      form      tanh      Alg. 1 lines 7-8: m + d tanh(alpha (x - m) / (d + eps)). Multiplies contrast by alpha.
                smooth    ours: x itself up to knee * d from m; beyond, the excess s becomes s / (1 + |s| / r),
                          r = (1 - knee) d. A value within the knee of all its tiles comes back bit for bit.
    A tile of one value comes back unchanged. A value that is not finite spoils the tiles it lies in.

    Args:
        x: latent or x0 prediction, (B, C, H, W) or (B, C, F, H, W), any float dtype. Frames are clipped one by one.
        tile, stride: in latent positions, 1 <= stride <= tile; see tile_grid for sizes they do not divide.
        alpha: slope of tanh at the centre, > 0. The other form ignores it.
        ema_beta: weight of the past in the corridor, 0 <= ema_beta < 1; 0 forgets. Without a state it does nothing.
        confidence: H in [0, 1] on the tile grid, (B, rows, columns), for video (B, F, rows, columns). None: the
            gradient confidence of x.
        state: carries l and h from step to step; one fresh AQClipState per sampling run. It is the one argument that
            is changed.
        step: anything that tells sampling steps apart, such as the step's index. Further calls with the same step
            (second-order samplers) start from the average before that step. None: every call is a step.
        knee: share of d that smooth leaves alone, 0 to 1; 1 clamps.
        k_min, k_max: half-width of the widening corridor in sd at H = 0 and H = 1, 0 <= k_min <= k_max.
    Returns:
        Same shape, dtype and device, computed in float32. Sample b depends on sample b only.
    Raises:
        ValueError: an argument is outside what is said above.
    """
    _check(alpha, ema_beta, corridor, form, knee, k_min, k_max)
    if x.dtype == torch.float64:
        narrow = x.float()
        options = {"step": step, "knee": knee, "k_min": k_min, "k_max": k_max}
        clipped = aqclip(narrow, tile, stride, alpha, ema_beta, confidence, corridor, form, state, **options)
        return torch.where(clipped == narrow, x, clipped.double())  # what was not clipped keeps all its digits

    frames = as_frames(x)  # (B, F, C, H, W)
    grid = tile_grid(x.shape[-2], x.shape[-1], tile, stride)
    certainty = _tile_confidence(x, grid, tile, stride, confidence)
    mean, variance = tile_statistics(frames, grid)
    bounds = _paper(mean, variance, certainty) if corridor == "paper" else _widening(mean, variance, certainty, k_min, k_max)
    if state is not None:
        bounds = state.average(bounds, ema_beta, (x.shape, tile, stride), step)
    varies = variance > 0.0
    tables = _tanh_tables(*bounds, varies, alpha) if form == "tanh" else _smooth_tables(*bounds, varies, knee)
    result = torch.empty_like(x)
    _clip_blocks(frames, as_frames(result), grid, tables, _tanh if form == "tanh" else _smooth)
    return result


