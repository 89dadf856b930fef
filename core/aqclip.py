"""AQClip: clip each tile of a latent softly into a corridor around its own mean, as wide as the tile is certain."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from .confidence import gradient_confidence
from .tiles import Grid, as_frames, blocks, tile_grid, tile_statistics

EPSILON = 1e-8  # the eps of Alg. 1 line 7
RAREST = 1e-6  # quantiles of Eq. 2 stay this far from 0 and 1, where the normal distribution has no bound

_Clip = Callable[[Tensor, Iterator[Tensor], Tensor, Tensor], None]


class AQClipState:
    """The running average (EMA) of the corridor over one sampling run.

    Make a new one for every run: there is no reset. A change of latent size, tile, stride, batch or device starts the
    average anew.
    """

    def __init__(self) -> None:
        self._layout: tuple[object, ...] | None = None  # what the corridors below belong to
        self._step: object = None
        self._before: Tensor | None = None  # average up to the step before this one
        self._average: Tensor | None = None

    def average(self, corridor: Tensor, beta: float, layout: tuple[object, ...], step: object = None) -> Tensor:
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
                          from [mu - 4.8 sd, mu] to [mu, mu + 4.8 sd], rather than widen.
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
        places = (narrow, tile, stride, alpha, ema_beta, confidence, corridor, form, state)
        clipped = aqclip(*places, step=step, knee=knee, k_min=k_min, k_max=k_max)
        return torch.where(clipped == narrow, x, clipped.double())  # what was not clipped keeps all its digits

    frames = as_frames(x)  # (B, F, C, H, W)
    grid = tile_grid(x.shape[-2], x.shape[-1], tile, stride)
    certainty = _tile_confidence(x, grid, tile, stride, confidence)
    mean, variance = tile_statistics(frames, grid)
    bounds = (
        _paper(mean, variance, certainty)
        if corridor == "paper"
        else _widening(mean, variance, certainty, k_min, k_max)
    )
    if state is not None:
        bounds = state.average(bounds, ema_beta, (x.shape, tile, stride), step)
    varies = variance > 0.0
    low, high = bounds
    tables = _tanh_tables(low, high, varies, alpha) if form == "tanh" else _smooth_tables(low, high, varies, knee)
    result = torch.empty_like(x)
    _clip_blocks(frames, as_frames(result), grid, tables, _tanh if form == "tanh" else _smooth)
    return result


def _check(alpha: float, ema_beta: float, corridor: str, form: str, knee: float, k_min: float, k_max: float) -> None:
    if corridor not in ("paper", "widening"):
        raise ValueError(f"aqclip: corridor is {corridor!r}; use 'paper' or 'widening'.")
    if form not in ("tanh", "smooth"):
        raise ValueError(f"aqclip: form is {form!r}; use 'tanh' or 'smooth'.")
    if not 0.0 < alpha < math.inf:
        raise ValueError(f"aqclip: alpha is {alpha}; use a finite value above 0.")
    if not 0.0 <= ema_beta < 1.0:
        raise ValueError(f"aqclip: ema_beta is {ema_beta}; use 0 (forget) up to, not including, 1.")
    if not 0.0 <= knee <= 1.0:
        raise ValueError(f"aqclip: knee is {knee}; use a value between 0 and 1.")
    if not 0.0 <= k_min <= k_max < math.inf:
        raise ValueError(
            f"aqclip: need 0 <= k_min <= k_max, got k_min={k_min}, k_max={k_max}; lower k_min or raise k_max."
        )


def _tile_confidence(x: Tensor, grid: Grid, tile: int, stride: int, confidence: Tensor | None) -> Tensor:
    """(B, F, rows, columns), F = 1 for an image."""
    if confidence is None:
        confidence = gradient_confidence(x, tile, stride)
    expected = (x.shape[0], *x.shape[2:-2], *grid.shape)
    if confidence.shape != expected:
        raise ValueError(
            f"aqclip: confidence has shape {tuple(confidence.shape)}, the tile grid of x is {expected}; "
            "pool it with confidence.tile_confidence."
        )
    return confidence.float() if x.ndim == 5 else confidence.float().unsqueeze(1)


def _paper(mean: Tensor, variance: Tensor, certainty: Tensor) -> Tensor:
    """QSilk Eq. 2, (2, B, F, rows, columns) = l and h. The upper quantile by symmetry, float32 being coarse near 1."""
    low = torch.special.ndtri((0.5 * certainty.square()).clamp(RAREST, 1.0 - RAREST))
    high = -torch.special.ndtri((0.5 * (1.0 - certainty).square()).clamp(RAREST, 1.0 - RAREST))
    return mean + torch.stack((low, high)) * variance.sqrt()


def _widening(mean: Tensor, variance: Tensor, certainty: Tensor, k_min: float, k_max: float) -> Tensor:
    """mu -+ k(H) sd, (2, B, F, rows, columns)."""
    width = (k_min + (k_max - k_min) * certainty) * variance.sqrt()
    return torch.stack((mean - width, mean + width))


def _tanh_tables(low: Tensor, high: Tensor, varies: Tensor, alpha: float) -> tuple[Tensor, Tensor]:
    """What _tanh needs to know of each tile, (3, B, F, rows + 1, columns + 1), and of the sum over tiles, (3, ...).

    The last row and column stand for "no tile": like a tile of one value, they must add nothing.
    """
    middle, half = (low + high) / 2, (high - low) / 2
    slope = 2.0 * alpha / (half + EPSILON)  # tanh(z) = 2 sigmoid(2 z) - 1, and sigmoid is several times faster
    tables = torch.stack((slope, -middle * slope, 2.0 * half)) * varies
    sums = torch.stack((torch.ones_like(middle), (middle - half) * varies, 1.0 - varies.float()))
    return F.pad(tables, (0, 1, 0, 1)), F.pad(sums, (0, 1, 0, 1))


def _smooth_tables(low: Tensor, high: Tensor, varies: Tensor, knee: float) -> tuple[Tensor, Tensor]:
    """What _smooth needs to know of each tile, as in _tanh_tables, and of the sum over tiles, (1, ...)."""
    middle, half = (low + high) / 2, (high - low) / 2
    room = ((1.0 - knee) * half).clamp(min=torch.finfo(torch.float32).tiny)
    columns = ((middle - knee * half, -math.inf), (middle + knee * half, math.inf), (room, 1.0))
    tables = [F.pad(t.masked_fill(~varies, idle), (0, 1, 0, 1), value=idle) for t, idle in columns]
    return torch.stack(tables), F.pad(torch.ones_like(middle), (0, 1, 0, 1)).unsqueeze(0)


def _clip_blocks(x: Tensor, result: Tensor, grid: Grid, tables: tuple[Tensor, Tensor], clip: _Clip) -> None:
    """Overlap-add (Alg. 1): write the mean over the tiles at each position of the tiles' clipped values to result."""
    bands, columns = (axis.covers(x.device) for axis in grid)  # (depth, bands)
    each, sums = (t.index_select(4, columns.flatten()).unflatten(4, columns.shape) for t in tables)
    each = each.repeat_interleave(grid.columns.unit, dim=-1)  # (n, B, F, rows + 1, depth, W)
    sums = sums.sum(4).index_select(3, bands.flatten()).unflatten(3, bands.shape).sum(3)  # (n, B, F, bands, bands)
    share = 1.0 / sums[:1]
    sums = torch.cat((share, sums[1:] / sums[:1])).repeat_interleave(grid.columns.unit, dim=-1)  # (n, B, F, bands, W)
    for block in blocks(x, grid.rows):
        layers = _layers(each[:, block.batch, block.frames], bands[:, block.bands])
        means = _against_x(sums[:, block.batch, block.frames, block.bands])
        part, target = block.of(x).float(), block.of(result)
        total = target if target.dtype == torch.float32 else torch.empty_like(part)
        clip(part, layers, means, total)
        if total is not target:
            target.copy_(total)


def _layers(tables: Tensor, bands: Tensor) -> Iterator[Tensor]:
    """Per layer of tiles that do not overlap, the tables (n, b, f, rows + 1, depth, W) at each band: see _against_x."""
    for band in bands:
        yield from map(_against_x, tables.index_select(3, band).unbind(4))


def _against_x(tables: Tensor) -> Tensor:
    """(n, b, f, bands, W) -> (n, b, f, 1, bands, 1, W), ready to broadcast against a block of x."""
    return tables.unsqueeze(3).unsqueeze(5)


def _tanh(x: Tensor, layers: Iterator[Tensor], means: Tensor, total: Tensor) -> None:
    """Alg. 1 lines 7-8 on a block (b, f, C, bands, height, W), written to total."""
    share, floor, kept = means  # kept: share of tiles of one value, where x stays
    part = torch.empty_like(x)
    torch.addcmul(floor, x, kept, out=total)
    for slope, offset, gain in layers:
        torch.addcmul(offset, x, slope, out=part)
        total.addcmul_(part.sigmoid_(), gain * share)


def _smooth(x: Tensor, layers: Iterator[Tensor], means: Tensor, total: Tensor) -> None:
    """x less what the tiles take from it, on a block (b, f, C, bands, height, W), written to total.

    An excess s over the knee becomes s / (1 + |s| / r), so s |s| / (r + |s|) is taken.
    """
    (share,) = means
    excess, size = torch.empty_like(x), torch.empty_like(x)
    total.zero_()
    for low, high, room in layers:
        torch.sub(x, torch.clamp(x, low, high, out=excess), out=excess)
        torch.abs(excess, out=size)
        total.addcdiv_(excess.mul_(size), size.add_(room))
    torch.addcmul(x, total, share, value=-1.0, out=total)
