"""How much quantization does to each run of a calibration."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from gimbal.core.plan import Plan
from gimbal.core.solvers import run

from .calibrate import Denoise


class Stress(NamedTuple):
    """Of each run, (R,). deviation: mean squared difference of the final latents of both models, each on its own
    trajectory. error: squared error of the quantized model's output as a share of the output's power, mean over the steps
    of full precision's trajectory."""

    deviation: Tensor
    error: Tensor


def measure(plan: Plan, full: Denoise, quantized: Denoise, x: Tensor) -> Stress:
    """Of runs from x (R, C, h, w)."""
    errors: list[Tensor] = []

    def paired(state: Tensor, sigma: Tensor) -> Tensor:
        denoised = full(state, sigma)
        power = (state - denoised).square().flatten(1).sum(1)
        errors.append((quantized(state, sigma) - denoised).square().flatten(1).sum(1) / power)
        return denoised

    difference = run(plan, paired, x) - run(plan, quantized, x)
    return Stress(difference.square().flatten(1).mean(1), torch.stack(errors).mean(0))
