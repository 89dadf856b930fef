"""Stabilise (METHODS.md section 8): guidance that burns less at the same strength.

cond and uncond are denoised predictions, (B, C, *spatial), of one noisy state x at one step. Float32 inside, whatever the
input; sample b depends on sample b only.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import torch
from torch import Tensor
from torch.nn import functional as F

TINY = 1e-30  # keeps 0/0 out, far below the square of any difference between predictions
AVERAGES = {1: F.avg_pool1d, 2: F.avg_pool2d}  # by how many dimensions they average over


@dataclass(frozen=True)
class Factors:
    """What becomes of the guidance's parts; all finite and not negative. 1, 1, 0, 1 is plain guidance.

    along: of the part along the noise. across: of the rest. fade: in root mean squares of the rest, how far its weak values
    fade out. fine: of the rest's fine detail, beside `across`.
    Raises:
        ValueError: a factor out of range.
    """

    along: float = 5.0
    across: float = 1.15
    fade: float = 1.0
    fine: float = 1.25

    def __post_init__(self) -> None:
        for name, value in ((field.name, getattr(self, field.name)) for field in fields(self)):
            if not 0.0 <= value < math.inf:
                raise ValueError(f"stabilised_guidance: {name}={value} is not a finite number from 0 on; give one.")


DEFAULT = Factors()


def stabilised_guidance(cond: Tensor, uncond: Tensor, noisy: Tensor, factors: Factors = DEFAULT) -> Tensor:
    """What takes the place of the guidance g = cond - uncond in cond + (cfg - 1) g: along g1 + across D(S(g2)).

    g1 is the part of g along n = noisy - (cond + uncond) / 2, over the whole sample, and g2 = g - g1. n is the noise that the
    predictions see in x, up to a factor. S(v) = v^3 / (v^2 + fade^2 r^2), r the root mean square of v over the places of a
    channel: values well below r fade out, values well above it stay. D(v) = M(v) + fine (v - M(v)), M the mean over the
    3 x 3 places around each.

    Source: ours, METHODS.md section 8. Tangential damping (TCFG, arXiv 2503.18137) is along 1, across 0.5, fade 0, fine 1 to
    first order in g; factors for coarse and fine parts are FreSca's (arXiv 2504.02154), which tells them apart by frequency.

    Args:
        cond, uncond, noisy: (B, C, *spatial) of one shape, in the sampler's units.
    Returns:
        (B, C, *spatial), float32.
    Raises:
        ValueError: the tensors differ in shape, or hold no positions.
    """
    _check(cond, uncond, noisy)
    g = cond.float() - uncond.float()
    noise = noisy.float() - uncond.float() - g / 2
    everything, places = tuple(range(1, g.ndim)), tuple(range(2, g.ndim))
    share = (g * noise).sum(everything, keepdim=True) / noise.square().sum(everything, keepdim=True).clamp_min_(TINY)
    part = noise.mul_(share)
    rest = g.sub_(part)
    if factors.fade:
        square = rest.square()
        floor = square.mean(places, keepdim=True).mul_(factors.fade**2).clamp_min_(TINY)
        rest = rest.mul_(square.div_(square + floor))
    if factors.fine != 1.0:
        rest = torch.lerp(_coarse(rest), rest, factors.fine)
    return part.mul_(factors.along).add_(rest, alpha=factors.across)


def stabilised_cond(
    cond: Tensor, uncond: Tensor, noisy: Tensor, cfg: float, amount: float = 1.0, factors: Factors = DEFAULT
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
    changed = stabilised_guidance(cond, uncond, noisy, factors)
    share = amount * (cfg - 1.0) / cfg
    if share == 0.0:
        return cond
    wide = cond.float()
    changed.sub_(wide).add_(uncond.float())
    return torch.add(wide, changed, alpha=share).to(cond.dtype)


def _coarse(x: Tensor) -> Tensor:
    """Mean over the 3 x 3 places around each (a frame's own; three in a row where there is one dimension), fewer at the edges."""
    flat = min(x.ndim - 2, 2)
    planes = x.flatten(0, x.ndim - flat - 1).unsqueeze(1)
    return AVERAGES[flat](planes, 3, 1, 1, count_include_pad=False).view_as(x)


def _check(cond: Tensor, uncond: Tensor, noisy: Tensor) -> None:
    shapes = [tuple(each.shape) for each in (cond, uncond, noisy)]
    if len(set(shapes)) > 1:
        found = "cond is {}, uncond {}, noisy {}".format(*shapes)
        raise ValueError(f"stabilised_guidance: {found}; give two predictions of one noisy state.")
    if cond.ndim < 3 or 0 in cond.shape[1:] or not all(each.is_floating_point() for each in (cond, uncond, noisy)):
        found = f"cond is {shapes[0]} {cond.dtype}"
        raise ValueError(f"stabilised_guidance: {found}; give floating-point (B, C, *spatial) latents.")
