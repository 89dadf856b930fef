"""The plain guidance scale whose pictures are as strong as given ones, found by a few trials."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

LOWEST = 1.0  # guidance scale without guidance
GROWTH = 4.0  # a step beyond all scales tried multiplies or divides the nearest by this, at most


def deviation(latent: Tensor) -> float:
    """Strength of a final latent: the standard deviation of each sample's channels over its positions, root mean square.

    Guidance raises it: over-guided pictures are those of too much contrast. In the latent's units, whatever the mean of
    a channel. Waits for the device.

    Args:
        latent: (B, C, *spatial), at least two positions, any float dtype.
    Raises:
        ValueError: latent has another shape or dtype.
    """
    if latent.ndim < 3 or not latent.is_floating_point() or latent[:1, :1].numel() < 2:
        got = f"{tuple(latent.shape)} {latent.dtype}"
        raise ValueError(
            f"deviation: latent is {got}; give a floating-point (B, C, *spatial) with two positions or more."
        )
    return float(latent.float().flatten(2).var(2, correction=0).mean().sqrt())


@dataclass(frozen=True)
class SampledScale:
    """A plain guidance scale and the strength of its pictures."""

    scale: float
    strength: float


def matching_scale(
    strength: Callable[[float], float],
    target: float,
    start: float,
    tolerance: float = 0.005,
    trials: int = 5,
    highest: float = 100.0,
) -> list[SampledScale]:
    """Trials of `strength`, a function that grows with the guidance scale, until one is within tolerance of target.

    The secant method on strength over the logarithm of the scale, kept between the nearest trials on either side of target
    where there are both. It ends early where `strength` asks for a scale below 1 or above `highest`, or for one that
    was tried.

    Args:
        strength: positive strength at a scale; each call is a whole sampling run.
        start: first scale tried, LOWEST <= start <= highest.
        tolerance: of |strength / target - 1|.
        trials: calls at most.
    Returns:
        Every trial, in order; `closest` picks one.
    Raises:
        ValueError: an argument is outside what is said above, or a strength is not finite and positive.
    """
    if not (0.0 < target < math.inf and LOWEST <= start <= highest and tolerance > 0.0 and trials >= 1):
        raise ValueError(
            f"matching_scale: got target={target}, start={start}, tolerance={tolerance}, trials={trials}; give a finite "
            f"target above 0, a start from {LOWEST:g} to {highest:g}, a tolerance above 0 and a trial or more."
        )
    made: list[SampledScale] = []
    scale = start
    while len(made) < trials:
        found = strength(scale)
        if not 0.0 < found < math.inf:
            raise ValueError(f"matching_scale: strength {found} at scale {scale:g} is not finite and positive.")
        made.append(SampledScale(scale, found))
        if abs(found / target - 1.0) <= tolerance:
            break
        scale = min(max(_next(made, target), LOWEST), highest)
        if any(math.isclose(scale, trial.scale, rel_tol=1e-4) for trial in made):
            break
    return made


def closest(trials: list[SampledScale], target: float) -> SampledScale:
    """The trial whose strength is nearest to target by ratio. ValueError if there is none."""
    return min(trials, key=lambda trial: abs(math.log(trial.strength / target)))


def _next(made: list[SampledScale], target: float) -> float:
    below = max((trial for trial in made if trial.strength < target), key=lambda trial: trial.scale, default=None)
    above = min((trial for trial in made if trial.strength >= target), key=lambda trial: trial.scale, default=None)
    if below and above and below.scale < above.scale:
        a, b = below, above
    elif len(made) > 1:
        a, b = made[-2:]
    else:  # strength grows about as the root of the scale
        return made[0].scale * _bounded(2.0 * math.log(target / made[0].strength))
    slope = (b.strength - a.strength) / math.log(b.scale / a.scale)
    nearest = closest([a, b], target)
    return nearest.scale * _bounded((target - nearest.strength) / slope) if slope > 0.0 else nearest.scale


def _bounded(step: float) -> float:
    """A factor of the scale."""
    return math.exp(min(max(step, -math.log(GROWTH)), math.log(GROWTH)))
