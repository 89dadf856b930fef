"""Stabilise (METHODS.md section 8): less of the guidance that burns, at the same agreement with the prompt.

cond and uncond are denoised predictions, (B, C, *spatial), of one noisy state x at one step. Float32 inside, whatever the
input; sample b depends on sample b only.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

ALONG, ACROSS, FADE = 2.0, 0.6, 0.5
TINY = 1e-30  # keeps 0/0 out, far below the square of any difference between predictions


def stabilised_guidance(
    cond: Tensor, uncond: Tensor, noisy: Tensor, along: float = ALONG, across: float = ACROSS, fade: float = FADE
) -> Tensor:
    """What takes the place of the guidance g = cond - uncond in cond + (cfg - 1) g: along g1 + across S(g2).

    g1 is the part of g along n = noisy - (cond + uncond) / 2, over the whole sample, and g2 = g - g1. n is the noise that the
    predictions see in x, up to a factor. S(v) = v^3 / (v^2 + fade^2 r^2), r the root mean square of v over the places of a
    channel: values well below r fade out, values well above it stay.

    Source: ours, METHODS.md section 8. Tangential damping (TCFG, arXiv 2503.18137) is along 1, across 0.5, fade 0 to first
    order in g.

    Args:
        cond, uncond, noisy: (B, C, *spatial) of one shape, in the sampler's units.
        along, across: factors of the two parts, finite and not negative. fade: in units of r, finite and not negative.
            along 1, across 1, fade 0 give g, to rounding.
    Returns:
        (B, C, *spatial), float32.
    Raises:
        ValueError: the tensors differ in shape, or hold no positions; a factor out of range.
    """
    _check(cond, uncond, noisy)
    for name, value in (("along", along), ("across", across), ("fade", fade)):
        if not 0.0 <= value < math.inf:
            raise ValueError(f"stabilised_guidance: {name}={value} is not a finite number from 0 on; give one.")
    g = cond.float() - uncond.float()
    noise = noisy.float() - uncond.float() - g / 2
    everything, places = tuple(range(1, g.ndim)), tuple(range(2, g.ndim))
    share = (g * noise).sum(everything, keepdim=True) / noise.square().sum(everything, keepdim=True).clamp_min_(TINY)
    part = noise.mul_(share)
    rest = g.sub_(part)
    if fade:
        square = rest.square()
        floor = square.mean(places, keepdim=True).mul_(fade**2).clamp_min_(TINY)
        rest = rest.mul_(square.div_(square + floor))
    return part.mul_(along).add_(rest, alpha=across)


def stabilised_cond(
    cond: Tensor,
    uncond: Tensor,
    noisy: Tensor,
    cfg: float,
    amount: float = 1.0,
    along: float = ALONG,
    across: float = ACROSS,
    fade: float = FADE,
) -> Tensor:
    """Conditional prediction, in cond's dtype, with which plain CFG after it gives cond + (cfg - 1) e.

    e = g + amount (stabilised_guidance - g), so that cond' = cond + (cfg - 1) / cfg (e - g).

    Source: ours, METHODS.md section 8.

    Args:
        cfg: scale of the CFG that follows, finite and not 0. amount: from 0 (cond itself, bit for bit) to 1.
        Others: as stabilised_guidance.
    Raises:
        ValueError: as stabilised_guidance; cfg or amount out of range.
    """
    if cfg == 0 or not math.isfinite(cfg):
        raise ValueError(f"stabilised_cond: cfg must be finite and not 0, got {cfg}; without CFG, stabilise nothing.")
    if not 0.0 <= amount <= 1.0:
        raise ValueError(f"stabilised_cond: amount={amount} is not between 0 and 1; give 0 for none of it, 1 for all.")
    changed = stabilised_guidance(cond, uncond, noisy, along, across, fade)
    share = amount * (cfg - 1.0) / cfg
    if share == 0.0:
        return cond
    wide = cond.float()
    changed.sub_(wide).add_(uncond.float())
    return torch.add(wide, changed, alpha=share).to(cond.dtype)


def _check(cond: Tensor, uncond: Tensor, noisy: Tensor) -> None:
    shapes = [tuple(each.shape) for each in (cond, uncond, noisy)]
    if len(set(shapes)) > 1:
        found = "cond is {}, uncond {}, noisy {}".format(*shapes)
        raise ValueError(f"stabilised_guidance: {found}; give two predictions of one noisy state.")
    if cond.ndim < 3 or 0 in cond.shape[1:] or not all(each.is_floating_point() for each in (cond, uncond, noisy)):
        found = f"cond is {shapes[0]} {cond.dtype}"
        raise ValueError(f"stabilised_guidance: {found}; give floating-point (B, C, *spatial) latents.")
