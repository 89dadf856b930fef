"""SAMG (arXiv 2604.26503, METHODS.md section 3): a guidance scale that varies over the image with the guidance's energy.

cond and uncond may be denoised, eps or velocity predictions, (B, C, H, W) or (B, C, F, H, W): these differ by one factor
per step, and no map here depends on a factor. Maps are float32 whatever the input; sample b depends on sample b only.
"""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from torch import Tensor

from .quantile import sample_quantiles

Normalize = Literal["minmax", "quantile"]
Curve = Literal["linear", "bound"]
Scope = Literal["clip", "frame"]
CHOICES = {"normalize": get_args(Normalize), "curve": get_args(Curve), "scope": get_args(Scope)}
LEVELS = {"minmax": (0.0, 1.0), "quantile": (0.01, 0.99)}  # quantiles of the energy that span its range
MIN_CONTRAST = 1e-4  # a smaller relative spread is float32 rounding before long: let the map go flat, not noisy
TINY_ENERGY = 1e-30  # keeps 0/0 out, far below the square of any difference between predictions


def guidance_energy(cond: Tensor, uncond: Tensor) -> Tensor:
    """Energy E of the guidance at each position, (B, 1, *spatial): the mean over channels of (cond - uncond)^2.

    Source: SAMG, METHODS.md section 3; differences from it: none. In float32, since half precision would overflow.

    Raises:
        ValueError: the predictions differ in shape or dtype, or are not floating-point latents of 4 or 5 dimensions.
    """
    return _energy_sum(_guidance("guidance_energy", cond, uncond)) / cond.shape[1]


def scale_map(
    cond: Tensor,
    uncond: Tensor,
    w_min: float,
    w_max: float,
    normalize: Normalize = "minmax",
    curve: Curve = "linear",
    scope: Scope = "clip",
) -> Tensor:
    """Guidance scale Omega at each position: w_max where the guidance is weak, down to w_min where it is strong.

    Source: SAMG, METHODS.md section 3: E_hat = (E - E_low)/(E_high - E_low), Omega = w_max - (w_max - w_min) E_hat.
    Differences from it: the paper's 1e-8 in the denominator ties the map to the space and the step. Here E_high - E_low
    counts as at least 1e-4 E_high, which is the paper's formula to rounding for any energy of more contrast than that.
    Equal energy everywhere gives w_max, as in the paper. `quantile`, `bound` and `frame` are ours.

    Args:
        w_min, w_max: scales, finite, w_min <= w_max. Equal ones give a constant map.
        normalize: a sample's E_low and E_high: minmax (extremes) | quantile (1 % and 99 %, E_hat clamped to [0, 1]).
        curve: linear | bound, Omega = clamp(1 + |w_min - 1| sqrt(E_high/E), w_min, w_max): the largest scale whose step
            off the data manifold, (Omega - 1)^2 E, stays within that of w_min at E_high. E -> 0 gives w_max; equal
            energy everywhere gives w_min. A w_min < 1 steps as far as 2 - w_min, which is then the scale at E_high;
            w_min = 1 allows no step, so that Omega = 1 everywhere.
        scope: one energy range for a video (clip: no flicker) or for each frame (frame). The same thing for images.
    Returns:
        (B, 1, *spatial), float32, within [w_min, w_max].
    Raises:
        ValueError: as guidance_energy; w_min and w_max out of order or not finite; an unknown option.
    """
    _check_options("scale_map", w_min, w_max, normalize=normalize, curve=curve, scope=scope)
    return _scale(_energy_sum(_guidance("scale_map", cond, uncond)), w_min, w_max, normalize, curve, scope)


def samg(
    cond: Tensor,
    uncond: Tensor,
    w_min: float,
    w_max: float,
    normalize: Normalize = "minmax",
    curve: Curve = "linear",
    scope: Scope = "clip",
) -> Tensor:
    """Guided prediction uncond + Omega . (cond - uncond), in the predictions' shape and dtype.

    Source: SAMG, METHODS.md section 3; differences from it, arguments and errors: those of scale_map, which is Omega.
    Where cond = uncond that value comes back.
    """
    _check_options("samg", w_min, w_max, normalize=normalize, curve=curve, scope=scope)
    guidance = _guidance("samg", cond, uncond)
    scale = _scale(_energy_sum(guidance), w_min, w_max, normalize, curve, scope)
    return torch.addcmul(uncond.float(), guidance, scale).to(uncond.dtype)


def steer_cond(cond: Tensor, uncond: Tensor, scale: Tensor, cfg: float) -> Tensor:
    """Conditional prediction, in cond's dtype, with which plain CFG after it gives uncond + scale . (cond - uncond).

    Source: METHODS.md section 3, placement: cond' = uncond + (scale/cfg) . (cond - uncond); differences from it: none.

    Args:
        scale: (B, 1, *spatial), as from scale_map. Equal to cfg it changes cond by rounding only.
        cfg: scale of the CFG that follows, finite and not 0.
    Raises:
        ValueError: as guidance_energy; scale of another shape; cfg 0 or not finite.
    """
    guidance = _guidance("steer_cond", cond, uncond)
    if scale.shape != (cond.shape[0], 1, *cond.shape[2:]):
        shapes = f"scale is {tuple(scale.shape)}, cond {tuple(cond.shape)}"
        raise ValueError(f"steer_cond: {shapes}; give (B, 1, *spatial), as scale_map does.")
    if cfg == 0 or not math.isfinite(cfg):
        raise ValueError(f"steer_cond: cfg must be finite and not 0, got {cfg}; without CFG, steer nothing.")
    return torch.addcmul(uncond.float(), guidance, scale.float() / cfg).to(cond.dtype)


def _guidance(name: str, cond: Tensor, uncond: Tensor) -> Tensor:
    if cond.shape != uncond.shape or cond.dtype != uncond.dtype:
        pair = f"cond {tuple(cond.shape)} {cond.dtype}, uncond {tuple(uncond.shape)} {uncond.dtype}"
        raise ValueError(f"{name}: got {pair}; give both predictions of one model at one step.")
    if cond.ndim not in (4, 5) or 0 in cond.shape[1:] or not cond.is_floating_point():
        got = f"{tuple(cond.shape)} {cond.dtype}"
        raise ValueError(f"{name}: cond is {got}; give a floating-point (B, C, H, W) or (B, C, F, H, W) latent.")
    return cond.float() - uncond.float()  # upcast first: the difference of two halves may be mostly their rounding


def _energy_sum(guidance: Tensor) -> Tensor:
    return guidance.square().sum(1, keepdim=True)  # the maps are made of ratios: no need to divide by the channels


def _scale(energy: Tensor, w_min: float, w_max: float, normalize: str, curve: str, scope: str) -> Tensor:
    per_frame = scope == "frame" and energy.ndim == 5
    flat = energy.flatten(0, 2 if per_frame else 1).flatten(1)  # (B or B*F, positions): a row has its own energy range
    low_level, high_level = LEVELS[normalize]
    if curve == "linear":
        low, high = _energy_at(flat, low_level), _energy_at(flat, high_level)
        spread = torch.maximum(high - low, high * MIN_CONTRAST).clamp_min(TINY_ENERGY)
        scale = (flat - low).div_(spread).mul_(w_min - w_max).add_(w_max)
    else:
        flat = flat.clamp_min(TINY_ENERGY)
        scale = flat.rsqrt().mul_(_energy_at(flat, high_level).sqrt() * abs(w_min - 1.0)).add_(1.0)
    return scale.clamp_(w_min, w_max).reshape(energy.shape)  # outside the energy range, and rounding at its ends


def _energy_at(flat: Tensor, level: float) -> Tensor:
    if level == 0.0:
        return flat.amin(1, keepdim=True)
    return flat.amax(1, keepdim=True) if level == 1.0 else sample_quantiles(flat, level)[0, :, None]


def _check_options(name: str, w_min: float, w_max: float, **choices: str) -> None:
    if not -math.inf < w_min <= w_max < math.inf:
        raise ValueError(f"{name}: w_min={w_min}, w_max={w_max} are not finite and in order; give w_min <= w_max.")
    for option, value in choices.items():
        if value not in CHOICES[option]:
            raise ValueError(f"{name}: {option} is {value!r}; choose one of {', '.join(CHOICES[option])}.")
