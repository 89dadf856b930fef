"""TAC-Diffusion (Yao et al., ECCV 2024, arXiv 2407.03917): noise estimates rescaled and inputs shifted, step by step."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from gimbal.core.plan import Plan
from gimbal.core.solvers import run

from ..calibrate import Denoise

SPACE = (0, 2, 3)


def fit(plan: Plan, full: Denoise, quantized: Denoise, x: Tensor) -> Callable[[Denoise, Tensor], Tensor]:
    """Input bias correction: x_hat - mean(x_hat - x) per channel. Noise estimation reconstruction: K eps_hat with K =
    sum(eps eps_hat) / sum(eps_hat^2) per channel, the least squares solution at the same states; the paper's mask of
    values by their relative distortion is left out. In closed loop: each step is fitted where the corrected ones before
    it have led. For solvers that call the model once a step."""
    wanted: list[Tensor] = []

    def watch(step: int, state: Tensor) -> Tensor:
        wanted.append(state)
        return state

    run(plan, full, x, after_step=watch)
    scales: list[Tensor] = []
    shifts: list[Tensor] = []

    def reconstruct(state: Tensor, sigma: Tensor) -> Tensor:
        eps, eps_hat = (state - full(state, sigma)) / sigma[0], (state - quantized(state, sigma)) / sigma[0]
        scales.append((eps * eps_hat).sum(SPACE, keepdim=True) / eps_hat.square().sum(SPACE, keepdim=True))
        return state - sigma[0] * scales[-1] * eps_hat

    def unbias(step: int, state: Tensor) -> Tensor:
        shifts.append((wanted[step] - state).mean(SPACE, keepdim=True))
        return state + shifts[-1]

    run(plan, reconstruct, x, after_step=unbias)

    def sample(denoise: Denoise, x: Tensor) -> Tensor:
        left = iter(scales)

        def scaled(state: Tensor, sigma: Tensor) -> Tensor:
            return torch.lerp(state, denoise(state, sigma), next(left))

        return run(plan, scaled, x, after_step=lambda step, state: state + shifts[step])

    return sample
