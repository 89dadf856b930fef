"""Deterministic samplers in k-diffusion's signature, for use without ComfyUI or k-diffusion.

fn(model, x, sigmas, extra_args=None, callback=None, disable=None, **options): model(x, sigma (B,), **extra_args) gives
the denoised x, (B, C, *spatial); sigmas (steps + 1,) fall; callback gets {"x", "i", "sigma", "sigma_hat", "denoised"}
at every step; disable is for progress bars and does nothing here. They integrate dx/dsigma = (x - denoised)/sigma, the
probability flow of VE and of flow models alike. A step to sigma 0 ends at the model's denoised x, as in ComfyUI.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from itertools import pairwise
from types import MappingProxyType
from typing import TypedDict

from torch import Tensor

Model = Callable[..., Tensor]
Sampler = Callable[..., Tensor]  # fn(model, x, sigmas, extra_args=None, callback=None, disable=None, **options)
Arguments = Mapping[str, object]  # further ones of the model's


class StepInfo(TypedDict):
    """What samplers tell their callback at each step."""

    x: Tensor  # (B, C, *spatial)
    i: int
    sigma: Tensor  # ()
    sigma_hat: Tensor  # ()
    denoised: Tensor  # (B, C, *spatial)


Callback = Callable[[StepInfo], None]
ADAMS_BASHFORTH = ((1.0,), (3 / 2, -1 / 2), (23 / 12, -16 / 12, 5 / 12), (55 / 24, -59 / 24, 37 / 24, -9 / 24))


class _Calls:
    """The model as a sampler's loop needs it: at a sigma given as a number, with the callback."""

    def __init__(self, model: Model, extra_args: Arguments | None, callback: Callback | None):
        self.model, self.extra_args, self.callback = model, extra_args or {}, callback

    def denoised(self, x: Tensor, sigma: float, step: int | None = None) -> Tensor:
        level = x.new_full((x.shape[0],), sigma)
        denoised = self.model(x, level, **self.extra_args)
        if step is not None and self.callback is not None:
            sigma_0d = x.new_full((), sigma)
            self.callback({"x": x, "i": step, "sigma": sigma_0d, "sigma_hat": sigma_0d, "denoised": denoised})
        return denoised

    def derivative(self, x: Tensor, sigma: float, step: int | None = None) -> Tensor:
        return (x - self.denoised(x, sigma, step)) / sigma


def sample_euler(
    model: Model,
    x: Tensor,
    sigmas: Tensor,
    extra_args: Arguments | None = None,
    callback: Callback | None = None,
    disable: bool | None = None,
) -> Tensor:
    """Euler's method (Karras et al. 2022), which is also DDIM."""
    calls, levels = _Calls(model, extra_args, callback), sigmas.tolist()
    for i, (sigma, sigma_next) in enumerate(pairwise(levels)):
        x = x + (sigma_next - sigma) * calls.derivative(x, sigma, i)
    return x


def sample_heun(
    model: Model,
    x: Tensor,
    sigmas: Tensor,
    extra_args: Arguments | None = None,
    callback: Callback | None = None,
    disable: bool | None = None,
) -> Tensor:
    """Heun's method (Karras et al. 2022, Algorithm 1): two calls a step, one in a step to 0."""
    calls, levels = _Calls(model, extra_args, callback), sigmas.tolist()
    for i, (sigma, sigma_next) in enumerate(pairwise(levels)):
        slope = calls.derivative(x, sigma, i)
        if sigma_next > 0.0:
            slope = (slope + calls.derivative(x + (sigma_next - sigma) * slope, sigma_next)) / 2.0
        x = x + (sigma_next - sigma) * slope
    return x


def sample_dpmpp_2m(
    model: Model,
    x: Tensor,
    sigmas: Tensor,
    extra_args: Arguments | None = None,
    callback: Callback | None = None,
    disable: bool | None = None,
) -> Tensor:
    """DPM-Solver++(2M), midpoint (Lu et al. 2022, Algorithm 2), in lambda = -ln sigma as in k-diffusion."""
    calls, levels = _Calls(model, extra_args, callback), sigmas.tolist()
    previous = None
    for i, (sigma, sigma_next) in enumerate(pairwise(levels)):
        denoised = calls.denoised(x, sigma, i)
        target = denoised
        if previous is not None and 0.0 < sigma_next < sigma < levels[i - 1]:
            ahead = math.log(sigma / sigma_next) / (2.0 * math.log(levels[i - 1] / sigma))  # 1 / (2 r)
            target = denoised + ahead * (denoised - previous)
        ratio = sigma_next / sigma
        x = ratio * x + (1.0 - ratio) * target
        previous = denoised
    return x


def sample_ipndm(
    model: Model,
    x: Tensor,
    sigmas: Tensor,
    extra_args: Arguments | None = None,
    callback: Callback | None = None,
    disable: bool | None = None,
    max_order: int = 4,
) -> Tensor:
    """Adams-Bashforth with the weights of equal steps, whatever the steps (Zhang and Chen 2023, iPNDM)."""
    calls, levels = _Calls(model, extra_args, callback), sigmas.tolist()
    past: list[Tensor] = []
    for i, (sigma, sigma_next) in enumerate(pairwise(levels)):
        past = [calls.derivative(x, sigma, i), *past][:max_order]
        weights = ADAMS_BASHFORTH[len(past) - 1 if sigma_next > 0.0 else 0]
        x = x + (sigma_next - sigma) * sum(w * d for w, d in zip(weights, past, strict=False))
    return x


def sample_lms(
    model: Model,
    x: Tensor,
    sigmas: Tensor,
    extra_args: Arguments | None = None,
    callback: Callback | None = None,
    disable: bool | None = None,
    order: int = 4,
) -> Tensor:
    """Linear multistep: the polynomial through the last derivatives, integrated exactly (Katherine Crowson's LMS)."""
    calls, levels = _Calls(model, extra_args, callback), sigmas.tolist()
    past: list[Tensor] = []
    for i, (sigma, sigma_next) in enumerate(pairwise(levels)):
        past = [calls.derivative(x, sigma, i), *past][: order if sigma_next > 0.0 else 1]
        weights = interpolation_weights([levels[i - j] for j in range(len(past))], sigma, sigma_next)
        x = x + sum(w * d for w, d in zip(weights, past, strict=True))
    return x


def interpolation_weights(nodes: list[float], start: float, end: float) -> list[float]:
    """Integral from start to end of each Lagrange polynomial of the nodes, which must differ."""
    weights = []
    for j, node in enumerate(nodes):
        polynomial = [1.0]  # coefficients of powers of (s - start), lowest first
        for other in nodes[:j] + nodes[j + 1 :]:
            shifted = zip([0.0, *polynomial], [*polynomial, 0.0], strict=True)
            polynomial = [(lower - (other - start) * same) / (node - other) for lower, same in shifted]
        weights.append(sum(c * (end - start) ** (k + 1) / (k + 1) for k, c in enumerate(polynomial)))
    return weights


SOLVERS: Mapping[str, Sampler] = MappingProxyType(
    {
        "euler": sample_euler,
        "ddim": sample_euler,
        "heun": sample_heun,
        "dpmpp_2m": sample_dpmpp_2m,
        "ipndm": sample_ipndm,
        "lms": sample_lms,
    }
)


def find_solver(solver: str | Sampler) -> Sampler:
    """The function of that name in SOLVERS; a function is its own.

    Raises:
        ValueError: no such name.
    """
    if callable(solver):
        return solver
    if solver not in SOLVERS:
        raise ValueError(f"solver is {solver!r}; choose one of {', '.join(SOLVERS)}, or give a sampler function.")
    return SOLVERS[solver]
