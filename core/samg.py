"""SAMG (arXiv 2604.26503, METHODS.md section 3): a guidance scale that varies over the image with the guidance's energy.

cond and uncond may be denoised, eps or velocity predictions, (B, C, H, W) or (B, C, F, H, W): these differ by one factor
per step, and no map here depends on a factor. Maps are float32 whatever the input; sample b depends on sample b only.
"""

from __future__ import annotations

import math
from itertools import product
from typing import Literal, get_args

import torch
from torch import Tensor

Normalize = Literal["minmax", "quantile"]
Curve = Literal["linear", "bound"]
Scope = Literal["clip", "frame"]
CHOICES = {"normalize": get_args(Normalize), "curve": get_args(Curve), "scope": get_args(Scope)}
SETTINGS = frozenset(product(*CHOICES.values()))
LOOKED_AT = 1024  # positions from which quantile takes an energy range, at least, where there are as many
# A smaller relative spread is float32 rounding before long: let the map go flat, not noisy. To multiply by a tensor takes
# half as long as by a number.
MIN_CONTRAST = torch.tensor(1e-4, device="cpu")
TINY_ENERGY = 1e-30  # keeps 0/0 out, far below the square of any difference between predictions


def guidance_energy(cond: Tensor, uncond: Tensor) -> Tensor:
    """Energy E of the guidance at each position, (B, 1, *spatial): the mean over channels of (cond - uncond)^2.

    Source: SAMG, METHODS.md section 3; differences from it: none. In float32, since half precision would overflow.

    Raises:
        ValueError: the predictions differ in shape or dtype, or are not floating-point latents of 4 or 5 dimensions.
    """
    _check_predictions("guidance_energy", cond, uncond)
    return _energy_sum(*_float32(cond, uncond)).div_(cond.shape[1])


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
        normalize: a sample's E_low and E_high: minmax (extremes) | quantile (1 % and 99 %, E_hat clamped to [0, 1]):
            the extremes that are left when the n // 100 smallest and the n // 100 largest energies are left out. From
            2048 positions on, the n are an even selection of 1024 or more: every s-th in row-major order, s the largest
            number up to positions / 1024 without a common divisor with H * W, so that no column is favoured. The share
            of all positions beyond an end is then 1 % with a standard deviation of 0.3 % for an unstructured energy.
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
    _check_options("scale_map", w_min, w_max, normalize, curve, scope)
    _check_predictions("scale_map", cond, uncond)
    return _scale(_energy_sum(*_float32(cond, uncond)), w_min, w_max, normalize, curve, scope)


def scale_of_energy(
    energy: Tensor,
    w_min: float,
    w_max: float,
    normalize: Normalize = "minmax",
    curve: Curve = "linear",
    scope: Scope = "clip",
) -> Tensor:
    """scale_map of an energy at hand, (B, 1, *spatial) float32 as guidance_energy gives it, which stays as it is.

    Raises:
        ValueError: as scale_map; energy has other dimensions or another dtype.
    """
    _check_options("scale_of_energy", w_min, w_max, normalize, curve, scope)
    if energy.ndim not in (4, 5) or energy.shape[1] != 1 or 0 in energy.shape[1:] or energy.dtype != torch.float32:
        got = f"{tuple(energy.shape)} {energy.dtype}"
        raise ValueError(
            f"scale_of_energy: energy is {got}; give (B, 1, *spatial) in float32, as guidance_energy does."
        )
    return _scale(energy, w_min, w_max, normalize, curve, scope)


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
    _check_options("samg", w_min, w_max, normalize, curve, scope)
    _check_predictions("samg", cond, uncond)
    pair = _float32(cond, uncond)
    return _blend(*pair, _scale(_energy_sum(*pair), w_min, w_max, normalize, curve, scope), cond.dtype)


def steer_cond(cond: Tensor, uncond: Tensor, scale: Tensor, cfg: float) -> Tensor:
    """Conditional prediction, in cond's dtype, with which plain CFG after it gives uncond + scale . (cond - uncond).

    Source: METHODS.md section 3, placement: cond' = uncond + (scale/cfg) . (cond - uncond); differences from it: none.

    Args:
        scale: (B, 1, *spatial), as from scale_map. Equal to cfg it changes cond by rounding only.
        cfg: scale of the CFG that follows, finite and not 0.
    Raises:
        ValueError: as guidance_energy; scale of another shape; cfg 0 or not finite.
    """
    _check_predictions("steer_cond", cond, uncond)
    if scale.shape != (cond.shape[0], 1, *cond.shape[2:]):
        shapes = f"scale is {tuple(scale.shape)}, cond {tuple(cond.shape)}"
        raise ValueError(f"steer_cond: {shapes}; give (B, 1, *spatial), as scale_map does.")
    _check_cfg("steer_cond", cfg)
    return _blend(*_float32(cond, uncond), scale.float() / cfg, cond.dtype)


def samg_cond(
    cond: Tensor,
    uncond: Tensor,
    cfg: float,
    w_range: tuple[float, float],
    normalize: Normalize = "minmax",
    curve: Curve = "linear",
    scope: Scope = "clip",
    strength: float = 1.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """Conditional prediction for the plain CFG that follows, and the maps behind it; the energy is computed once.

    Source: METHODS.md section 3: steer_cond with lerp(cfg, scale_map, strength); differences from it: none.

    Args:
        cfg: scale of the CFG that follows, finite and not 0.
        w_range: w_min and w_max of scale_map, as the other options are.
        strength: 0 (plain CFG, to rounding) to 1 (SAMG).
    Returns:
        cond' in cond's shape and dtype; energy and scale, (B, 1, *spatial), float32.
    Raises:
        ValueError: as scale_map and steer_cond.
    """
    w_min, w_max = w_range
    _check_options("samg_cond", w_min, w_max, normalize, curve, scope)
    _check_predictions("samg_cond", cond, uncond)
    _check_cfg("samg_cond", cfg)
    pair = _float32(cond, uncond)
    energy = _energy_sum(*pair).div_(cond.shape[1])
    scale = _scale(energy, w_min, w_max, normalize, curve, scope)
    if strength != 1.0:
        scale.sub_(cfg).mul_(strength).add_(cfg)
    return _blend(*pair, scale / cfg, cond.dtype), energy, scale


def _float32(cond: Tensor, uncond: Tensor) -> tuple[Tensor, Tensor]:
    """Not in half precision: energies would overflow, and the difference may be mostly rounding."""
    if cond.dtype == torch.float32:  # a conversion that has nothing to do takes as long as a small operation
        return cond, uncond
    return cond.float(), uncond.float()


def _energy_sum(cond: Tensor, uncond: Tensor) -> Tensor:
    """Energy times the number of channels: maps are made of ratios, so there is no need to divide."""
    return (cond - uncond).square_().sum(1, keepdim=True)


def _blend(cond: Tensor, uncond: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """uncond + scale . (cond - uncond)"""
    blend = torch.lerp(uncond, cond, scale)
    return blend if dtype == torch.float32 else blend.to(dtype)


def _scale(energy: Tensor, w_min: float, w_max: float, normalize: str, curve: str, scope: str) -> Tensor:
    """Omega from an energy times any factor, which stays as it is."""
    per_frame = scope == "frame" and energy.ndim == 5
    flat = energy.flatten(0, 2).flatten(1) if per_frame else energy.flatten(1)  # a row has its own energy range
    quantile = normalize == "quantile"
    seen = flat[:, :: _step(flat.size(1), energy.size(-2) * energy.size(-1))] if quantile else flat
    if curve == "linear":
        low, high = _end(seen, quantile, largest=False), _end(seen, quantile, largest=True)
        spread = torch.maximum(high - low, high * MIN_CONTRAST).clamp_min_(TINY_ENERGY)
        share, calm, gain = (flat - low).div_(spread), w_max, w_min - w_max
    else:
        high = _end(seen, quantile, largest=True).clamp_min(TINY_ENERGY)
        share = flat.clamp_min(TINY_ENERGY)
        share, calm, gain = torch.div(high, share, out=share).sqrt_(), 1.0, abs(w_min - 1.0)
    scale = torch.add(share.new_full((), calm), share, alpha=gain, out=share)
    return scale.clamp_(w_min, w_max).view_as(energy)  # outside the energy range, and rounding at its ends


def _end(seen: Tensor, quantile: bool, largest: bool) -> Tensor:
    """Lower or upper end of the energy range of each row, (rows, 1)."""
    if quantile:
        return seen.topk(seen.size(1) // 100 + 1, 1, largest).values[:, -1:]
    return seen.amax(1, keepdim=True) if largest else seen.amin(1, keepdim=True)


def _step(positions: int, picture: int) -> int:
    """From one position that quantile looks at to the next. Without a common divisor they spread over all columns."""
    step = max(positions // LOOKED_AT, 1)
    while math.gcd(step, picture) > 1:
        step -= 1
    return step


def _check_options(name: str, w_min: float, w_max: float, normalize: str, curve: str, scope: str) -> None:
    if not -math.inf < w_min <= w_max < math.inf:
        raise ValueError(f"{name}: w_min={w_min}, w_max={w_max} are not finite and in order; give w_min <= w_max.")
    if (normalize, curve, scope) in SETTINGS:
        return
    for (option, choices), value in zip(CHOICES.items(), (normalize, curve, scope), strict=True):
        if value not in choices:
            raise ValueError(f"{name}: {option} is {value!r}; choose one of {', '.join(choices)}.")


def _check_cfg(name: str, cfg: float) -> None:
    if cfg == 0 or not math.isfinite(cfg):
        raise ValueError(f"{name}: cfg must be finite and not 0, got {cfg}; without CFG, steer nothing.")


def _check_predictions(name: str, cond: Tensor, uncond: Tensor) -> None:
    shape = cond.shape
    if shape != uncond.shape or cond.dtype != uncond.dtype:
        pair = f"cond {tuple(cond.shape)} {cond.dtype}, uncond {tuple(uncond.shape)} {uncond.dtype}"
        raise ValueError(f"{name}: got {pair}; give both predictions of one model at one step.")
    if len(shape) not in (4, 5) or 0 in shape[1:] or not cond.is_floating_point():
        got = f"{tuple(shape)} {cond.dtype}"
        raise ValueError(f"{name}: cond is {got}; give a floating-point (B, C, H, W) or (B, C, F, H, W) latent.")
