"""The Deformable Noise Scheduler (openreview KUXeiU7eNR): quantization noise read as a shift of the noise level."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from gimbal.core.plan import Plan

from .. import calibrate
from ..calibrate import Denoise


def fit(plan: Plan, full: Denoise, quantized: Denoise, x: Tensor) -> Callable[[Denoise, Tensor], Tensor]:
    """An Euler step adds (sigma' - sigma) times the model's error, of variance V, to a state that should hold noise of
    level sigma'. The sum is noise of a higher level, from which the next step starts (abstract; formulas ours). V: the
    part of the error that the output does not explain, shared by all channels. Euler only."""
    found = calibrate.statistics(plan, full, quantized, x)
    sigmas = [step.sigma for step in plan.steps] + [plan.steps[-1].sigma_next]
    variances = [float(found.variance(sigma, channels="scalar")[0]) for sigma in sigmas[:-1]]

    def sample(denoise: Denoise, x: Tensor) -> Tensor:
        level = sigmas[0]
        for variance, following in zip(variances, sigmas[1:], strict=True):
            move = following - level
            x = x + move / level * (x - denoise(x, x.new_full((len(x),), level)))
            level = following
            if following > 0.0:
                level, scale = shifted(following, move**2 * variance, plan.path)
                x = x * scale
        return x

    return sample


def shifted(sigma: float, variance: float, path: str) -> tuple[float, float]:
    """The level at which signal and noise stand as they do at sigma with independent noise of this variance added, and
    the factor that brings the state there."""
    noise = (sigma**2 + variance) ** 0.5
    if path == "ve":
        return noise, 1.0
    total = 1.0 - sigma + noise
    return noise / total, 1.0 / total
