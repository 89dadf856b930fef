"""TCEC-style compensation (after Liu et al. 2025, arXiv 2508.12094): the error accumulated so far, taken out at each step."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from gimbal.core.plan import Plan
from gimbal.core.solvers import run

from ..calibrate import Denoise

SPACE = (0, 2, 3)


def fit(plan: Plan, full: Denoise, quantized: Denoise, x: Tensor) -> Callable[[Denoise, Tensor], Tensor]:
    """Of the paper only the abstract was at hand: a compensation of the cumulative error by step, here with one
    coefficient per channel: x_hat' = x_hat + K u, u the move the quantized model made in this step, K = sum((x - x_hat) u)
    / sum(u^2). x - x_hat holds what earlier steps left, so that each coefficient feeds their rest back."""
    wanted: list[Tensor] = []

    def watch(step: int, state: Tensor) -> Tensor:
        wanted.append(state)
        return state

    run(plan, full, x, after_step=watch)
    coefficients: list[Tensor] = []
    before = x

    def compensate(step: int, state: Tensor) -> Tensor:
        nonlocal before
        move = state - before
        left = ((wanted[step] - state) * move).sum(SPACE, keepdim=True)
        coefficients.append(left / move.square().sum(SPACE, keepdim=True))
        before = state + coefficients[-1] * move
        return before

    run(plan, quantized, x, after_step=compensate)

    def sample(denoise: Denoise, x: Tensor) -> Tensor:
        before = x

        def compensated(step: int, state: Tensor) -> Tensor:
            nonlocal before
            before = state + coefficients[step] * (state - before)
            return before

        return run(plan, denoise, x, after_step=compensated)

    return sample
