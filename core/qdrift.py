"""Q-Drift's gains (arXiv 2603.18095, METHODS.md 4.2): how much a solver's step grows to make up for the model's error.

A quantized model's error adds variance to the state at every step, as a diffusion would; the gain c lengthens the step
by the drift that takes the same variance out again. Gains depend on the schedule and the statistics only, never on the
latent: they are numbers on the CPU, in float64, known before sampling starts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .shapes import to_float64


def euler_gain(sigma: float, sigma_next: float, variance: Tensor | float) -> Tensor:
    """Gain of an Euler step, c = |sigma_next - sigma| / (2 sigma) V: the step is multiplied by 1 + c.

    Source: Q-Drift Eq. 22 (eps and its V, sigma of the VE path) and Eq. 27 (velocity and its V, sigma of the flow
    path); differences from it: none. A step to sigma_next = 0 has c = V / 2; one from sigma = 0 has none.

    Args:
        sigma, sigma_next: noise levels at the step's ends, finite, >= 0.
        variance: conditional variance V of the model output's error at sigma, any shape, >= 0; (C,) is per channel.
    Returns:
        c in the shape of variance, float64 on the CPU.
    Raises:
        ValueError: a level or a variance is negative or not finite.
    """
    for name, level in (("sigma", sigma), ("sigma_next", sigma_next)):
        if not 0.0 <= level < math.inf:
            raise ValueError(f"euler_gain: {name} is {level}; give a finite noise level, 0 or above.")
    return as_variance("euler_gain", variance) * (abs(sigma_next - sigma) / (2.0 * sigma) if sigma > 0.0 else 0.0)


def quadrature_gain(
    weights: Sequence[float] | Tensor,
    variances: Sequence[float] | Tensor,
    sigma_bar: float,
    sigma_bar_next: float,
) -> Tensor:
    """Gain of any linear step y' = y + sum_j w_j eps_j: c = sum_j w_j^2 V_j / |sigma_bar^2 - sigma_bar_next^2|.

    Source: Q-Drift Eq. 37, y = x / alpha, sigma_bar = sigma / alpha; differences from it: none. At the limits: a step
    of no length has no gain, nor has one that starts or ends at sigma_bar = inf, which is flow at sigma = 1.

    Args:
        weights: (n,), of each model output in y, finite.
        variances: (n,) or (n, C), conditional variances of those outputs' errors, >= 0.
        sigma_bar, sigma_bar_next: at the step's ends, >= 0, inf allowed.
    Returns:
        c, () or (C,), float64 on the CPU.
    Raises:
        ValueError: weights and variances of different lengths, or a value outside what is said above.
    """
    weights, variances = to_float64(weights), as_variance("quadrature_gain", variances)
    if weights.ndim != 1 or variances.ndim not in (1, 2) or len(weights) != len(variances):
        shapes = f"weights {tuple(weights.shape)}, variances {tuple(variances.shape)}"
        raise ValueError(f"quadrature_gain: {shapes}; give (n,) weights and (n,) or (n, C) variances.")
    if not weights.isfinite().all():
        raise ValueError(
            f"quadrature_gain: weights {weights.tolist()} are not finite; give those of y at the step's end."
        )
    return gain_from_variance(weights.square() @ variances, sigma_bar, sigma_bar_next)


def gain_from_variance(added: Tensor, sigma_bar: float, sigma_bar_next: float) -> Tensor:
    """Gain that takes out again what a step adds to the variance of y: c = added / |sigma_bar^2 - sigma_bar_next^2|.

    Source: Q-Drift Eq. 36. Limits and levels as in quadrature_gain; `added` in any shape, on the CPU.

    Raises:
        ValueError: a sigma_bar is negative or NaN.
    """
    if not (sigma_bar >= 0.0 and sigma_bar_next >= 0.0):
        raise ValueError(
            f"quadrature_gain: sigma_bar is {sigma_bar}, then {sigma_bar_next}; give values of 0 or above."
        )
    if math.inf in (sigma_bar, sigma_bar_next) or sigma_bar == sigma_bar_next:
        return torch.zeros_like(added)
    return added / abs(sigma_bar**2 - sigma_bar_next**2)


def cap_gain(gain: Tensor, cap: float = 1.0) -> tuple[Tensor, bool]:
    """The gain kept within [-cap, cap], and whether that changed it. Guards a latent against statistics gone wrong.

    Args:
        gain: any shape, on the CPU: asking whether it was capped then waits for no device.
        cap: > 0; inf is no cap.
    Raises:
        ValueError: cap is not above 0.
    """
    if not cap > 0.0:
        raise ValueError(f"cap_gain: cap is {cap}; give a value above 0 (inf is no cap).")
    return gain.clamp(-cap, cap), bool((gain.abs() > cap).any())


def as_variance(name: str, variance: Tensor | float | Sequence[float]) -> Tensor:
    """variance as float64 on the CPU, in its own shape.

    Raises:
        ValueError: a value is negative or not finite.
    """
    variance = to_float64(variance)
    if not (variance.isfinite().all() and (variance >= 0.0).all()):
        raise ValueError(f"{name}: variance {variance.tolist()} is negative or not finite; calibrate again.")
    return variance
