"""AQClip: clip each tile of a latent softly into a corridor around its own mean, as wide as the tile is certain."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from . import aqclip_cpu, aqclip_device, device
from .confidence import gradient_confidence
from .corridor import AQClipState, Corridor, inactive, paper, widening
from .tiles import Grid, as_frames, cover, tile_grid, tile_statistics

__all__ = ["AQClipState", "aqclip"]


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
    """Clip every tile softly into its corridor [l, h] and blend the overlapping tiles evenly (aqclip_cpu, aqclip_device).

    Source: QSilk Sec. 3.2-3.3, Eq. 2 and Alg. 1, as METHODS.md section 2 reads them. With mu and sd the mean and
    (population) standard deviation of a tile over channels and positions, H its confidence, m = (l + h) / 2 and
    d = (h - l) / 2:
      corridor  paper     Eq. 2: l = mu + ndtri(H^2 / 2) sd, h = mu + ndtri(1 - (1 - H)^2 / 2) sd. It slides with H,
                          from [mu - 4.8 sd, mu] to [mu, mu + 4.8 sd], rather than widen.
                widening  ours: mu -+ (k_min + (k_max - k_min) H) sd.
      form      tanh      Alg. 1 lines 7-8: m + d tanh(alpha (x - m) / (d + eps)). Multiplies contrast by alpha.
                smooth    ours: x itself up to knee * d from m; beyond, the excess s becomes s / (1 + |s| / r),
                          r = (1 - knee) d. A value within the knee of all its tiles comes back bit for bit.
    A tile of one value comes back unchanged. So does a tile that holds a value that is not finite, and one whose
    confidence is NaN; they count as unclipped where they overlap others, and no other tile is touched by them. A value
    that is not finite comes back as one.

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

    wide = x if device.on_host(x) else x.float()  # the CPU converts block by block
    frames = as_frames(wide)  # (B, F, C, H, W)
    grid = tile_grid(x.shape[-2], x.shape[-1], tile, stride)
    certainty = _tile_confidence(wide, grid, tile, stride, confidence)
    mean, variance = tile_statistics(frames, grid)
    if corridor == "paper":
        middle, half = paper(mean, variance, certainty)
    else:
        middle, half = widening(mean, variance, certainty, k_min, k_max)
    if state is not None and ema_beta > 0.0:
        middle, half = state.average(torch.stack((middle, half)), ema_beta, (x.shape, tile, stride), step)
    limits = Corridor(middle, half, inactive(variance, half))

    slope_or_knee = alpha if form == "tanh" else knee
    if device.on_host(x):
        result = torch.empty_like(x)
        clip_blocks = aqclip_cpu.clip_tanh if form == "tanh" else aqclip_cpu.clip_smooth
        clip_blocks(frames, as_frames(result), grid, limits, slope_or_knee)
        return result
    layers = cover(grid, x.device) if state is None else state.cover(grid, x.device)
    clip_layers = aqclip_device.clip_tanh if form == "tanh" else aqclip_device.clip_smooth
    clipped = clip_layers(frames, grid, layers, limits, slope_or_knee).to(x.dtype)
    return clipped.transpose(1, 2) if x.ndim == 5 else clipped.squeeze(1)


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
