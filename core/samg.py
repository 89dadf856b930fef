"""SAMG: guidance whose scale varies over the image with the energy of the guidance itself.

METHODS.md section 3, arXiv 2604.26503. With delta = cond - uncond, E = mean over channels of delta^2 and a scale map
Omega(E), the guided prediction is uncond + Omega . delta. cond and uncond may be denoised, eps or velocity predictions:
they differ by one factor per step, and no map here depends on a factor.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from .quantile import sample_quantiles
from .shapes import expand_like

Normalize = Literal["minmax", "quantile"]
Curve = Literal["linear", "bound"]
Scope = Literal["clip", "frame"]

QUANTILES = (0.01, 0.99)
MIN_CONTRAST = 1e-4  # a relative spread of energies this small is mostly float32 rounding: fade the map out, not noise in
TINY_ENERGY = 1e-30  # keeps 0/0 out; below the square of anything a half, bfloat16 or sane float32 prediction differs by


def guidance_energy(cond: Tensor, uncond: Tensor) -> Tensor:
    """Energy of the guidance at each position: the mean over channels of (cond - uncond)^2.

    Source: SAMG, METHODS.md section 3; differences from it: none.

    Args:
        cond, uncond: the two predictions, (B, C, H, W) or (B, C, F, H, W), same dtype, any space.
    Returns:
        (B, 1, *spatial), float32 whatever the input, for half would overflow. Sample b depends on sample b only.
    Raises:
        ValueError: the predictions differ in shape or dtype, or are no floating-point latents of 4 or 5 dimensions.
    """
    _check_predictions("guidance_energy", cond, uncond)
    return _energy(_guidance(cond, uncond))


def scale_map(
    cond: Tensor,
    uncond: Tensor,
    w_min: float,
    w_max: float,
    normalize: Normalize = "minmax",
    curve: Curve = "linear",
    scope: Scope = "clip",
) -> Tensor:
    """Guidance scale Omega at each position, in [w_min, w_max]: low where the guidance is strong, high where it is weak.

    Source: SAMG, METHODS.md section 3 for minmax, linear. E_low and E_high are the extremes (minmax) or the 1 % and 99 %
    quantiles (quantile) of a sample's energies E.
        linear  Omega = w_max - (w_max - w_min) clamp((E - E_low)/(E_high - E_low), 0, 1)
        bound   Omega = clamp(1 + |w_min - 1| sqrt(E_high/E), w_min, w_max), ours: the largest scale that leaves the data
                manifold, by (Omega - 1)^2 E, no further than w_min does at E_high. E -> 0 gives w_max. With w_min < 1
                the scale at E_high is the other root 2 - w_min, and with w_min = 1 it is 1 wherever E > 0.
    Difference from the paper: its 1e-8 in the denominator would tie the map to the space and to the step. Here E_high -
    E_low is at least 1e-4 E_high instead, equal to the paper's to rounding for any energy with more contrast than that.
    Equal energy everywhere (cond = uncond too) gives what the formulas give: w_max for linear, as in the paper, and
    w_min (2 - w_min if that is below 1, at most w_max) for bound, where every position is the strongest.

    Args:
        cond, uncond: the two predictions, (B, C, H, W) or (B, C, F, H, W), same dtype, any space.
        w_min, w_max: scales, finite, w_min <= w_max. Equal ones give a constant map.
        normalize: range of energies: minmax | quantile, which a single outlier does not decide.
        curve: linear | bound.
        scope: for video, clip (one range for all frames: no flicker) | frame (each frame its own). Same for images.
    Returns:
        (B, 1, *spatial), float32. Sample b depends on sample b only.
    Raises:
        ValueError: as guidance_energy, or an unknown option, or w_min and w_max out of order or not finite.
    """
    _check_predictions("scale_map", cond, uncond)
    _check_options("scale_map", w_min, w_max, normalize, curve, scope)
    return _scale(_energy(_guidance(cond, uncond)), w_min, w_max, normalize, curve, scope)


def samg(
    cond: Tensor,
    uncond: Tensor,
    w_min: float,
    w_max: float,
    normalize: Normalize = "minmax",
    curve: Curve = "linear",
    scope: Scope = "clip",
) -> Tensor:
    """Guided prediction uncond + Omega . (cond - uncond), Omega the scale_map of the same arguments.

    Source: SAMG, METHODS.md section 3; differences, arguments and errors: see scale_map. cond = uncond comes back as it
    is, and w_min = w_max is plain CFG.

    Returns:
        Same shape, dtype and device as uncond. Sample b depends on sample b only.
    """
    _check_predictions("samg", cond, uncond)
    _check_options("samg", w_min, w_max, normalize, curve, scope)
    guidance = _guidance(cond, uncond)
    scale = _scale(_energy(guidance), w_min, w_max, normalize, curve, scope)
    return torch.addcmul(uncond.float(), guidance, scale).to(uncond.dtype)


def steer_cond(cond: Tensor, uncond: Tensor, scale: Tensor, cfg: float) -> Tensor:
    """Conditional prediction with which plain CFG at `cfg` gives uncond + scale . (cond - uncond).

    Source: METHODS.md section 3, placement: cond' = uncond + (scale/cfg) . (cond - uncond). For hosts in which CFG
    follows and should keep its own slot.

    Args:
        cond, uncond: the two predictions, (B, C, H, W) or (B, C, F, H, W), same dtype, any space.
        scale: (B, 1, *spatial), such as a scale_map. Equal to cfg everywhere it changes cond by rounding only.
        cfg: the scale of the CFG that follows, finite, not 0.
    Returns:
        Same shape, dtype and device as cond. Sample b depends on sample b only.
    Raises:
        ValueError: as guidance_energy, or scale does not fit the predictions, or cfg is 0 or not finite.
    """
    _check_predictions("steer_cond", cond, uncond)
    if scale.shape != (cond.shape[0], 1, *cond.shape[2:]):
        raise ValueError(
            f"steer_cond: scale has shape {tuple(scale.shape)}, the predictions {tuple(cond.shape)}; "
            "give one scale per position, (B, 1, *spatial), as scale_map does."
        )
    if cfg == 0 or not math.isfinite(cfg):
        raise ValueError(f"steer_cond: cfg must be finite and not 0, got {cfg}; without CFG there is nothing to steer.")
    return torch.addcmul(uncond.float(), _guidance(cond, uncond), scale.float() / cfg).to(cond.dtype)


def _guidance(cond: Tensor, uncond: Tensor) -> Tensor:
    return cond.float() - uncond.float()  # upcast first: the difference of two halves is mostly their rounding


def _energy(guidance: Tensor) -> Tensor:
    return guidance.square().mean(1, keepdim=True)


def _scale(energy: Tensor, w_min: float, w_max: float, normalize: str, curve: str, scope: str) -> Tensor:
    per_frame = scope == "frame" and energy.ndim == 5
    maps = energy.flatten(0, 2 if per_frame else 1)  # (maps, *positions): each has a range of energies of its own
    if curve == "linear":
        low, high = _energy_range(maps, normalize)
        spread = torch.maximum(high - low, high * MIN_CONTRAST).clamp_min(TINY_ENERGY)
        scale = (maps - low) * ((w_min - w_max) / spread) + w_max
    else:
        maps = maps.clamp_min(TINY_ENERGY)
        _, high = _energy_range(maps, normalize)
        scale = maps.rsqrt() * (high.sqrt() * abs(w_min - 1.0)) + 1.0
    return scale.clamp(w_min, w_max).reshape_as(energy)  # energies outside the range, and rounding at its ends


def _energy_range(maps: Tensor, normalize: str) -> tuple[Tensor, Tensor]:
    if normalize == "quantile":
        low, high = sample_quantiles(maps, QUANTILES)  # (maps,) each
        return expand_like(low, maps), expand_like(high, maps)
    positions = tuple(range(1, maps.ndim))
    return maps.amin(positions, keepdim=True), maps.amax(positions, keepdim=True)


def _check_predictions(name: str, cond: Tensor, uncond: Tensor) -> None:
    if cond.shape != uncond.shape or cond.dtype != uncond.dtype:
        raise ValueError(
            f"{name}: cond is {tuple(cond.shape)} {cond.dtype}, uncond {tuple(uncond.shape)} {uncond.dtype}; "
            "give both predictions of one model at one step."
        )
    if cond.ndim not in (4, 5) or not cond.is_floating_point():
        raise ValueError(
            f"{name}: cond must be a float (B, C, H, W) or (B, C, F, H, W), got {tuple(cond.shape)} {cond.dtype}; "
            "bring the latent into one of these shapes."
        )


def _check_options(name: str, w_min: float, w_max: float, normalize: str, curve: str, scope: str) -> None:
    if not -math.inf < w_min <= w_max < math.inf:
        raise ValueError(f"{name}: w_min must be finite and at most w_max, got w_min={w_min}, w_max={w_max}; swap them.")
    for option, value, known in (
        ("normalize", normalize, ("minmax", "quantile")),
        ("curve", curve, ("linear", "bound")),
        ("scope", scope, ("clip", "frame")),
    ):
        if value not in known:
            raise ValueError(f"{name}: {option} must be one of {known}, got {value!r}; choose one of them.")
