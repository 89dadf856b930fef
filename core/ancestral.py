"""Euler ancestral as steps that can be corrected: a deterministic step to sigma_down, then fresh noise.

The noise is the sampler's own and needs no correction; the step to sigma_down is an Euler step like any other.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from .multistep import LinearCombination, SolverStage, Step


def ancestral_steps(path: str, schedule: Sequence[float], eta: float = 1.0, s_noise: float = 1.0) -> tuple[Step, ...]:
    """Steps of k-diffusion's euler_ancestral (path ve) or of its rectified-flow form as in ComfyUI (path flow).

    Args:
        schedule: sigmas, one more than there are steps, falling; within [0, 1] on the flow path.
        eta: share of the noise that is fresh, 0 (none, Euler) to 1.
        s_noise: scale of the fresh noise.
    Raises:
        ValueError: eta or s_noise outside what is said above.
    """
    if not (0.0 <= eta <= 1.0 and 0.0 <= s_noise < math.inf):
        raise ValueError(f"euler_ancestral: eta={eta}, s_noise={s_noise}; give eta from 0 to 1 and s_noise from 0 up.")
    split = _flow_split if path == "flow" else _ve_split
    steps = []
    for call, (sigma, sigma_next) in enumerate(pairwise(schedule)):
        down, rescale, renoise = split(sigma, sigma_next, eta)
        stage = SolverStage(call, sigma, LinearCombination(1.0, ()))
        mix = LinearCombination(1.0, ((call, down - sigma),))  # of the derivative
        steps.append(Step(sigma, down, sigma_next, (stage,), mix, (call,), rescale, renoise * s_noise))
    return tuple(steps)


def _ve_split(sigma: float, sigma_next: float, eta: float) -> tuple[float, float, float]:
    up = min(sigma_next, eta * sigma_next * math.sqrt(max(sigma**2 - sigma_next**2, 0.0)) / sigma)
    return math.sqrt(sigma_next**2 - up**2), 1.0, up


def _flow_split(sigma: float, sigma_next: float, eta: float) -> tuple[float, float, float]:
    """After the scaling the data has the share 1 - sigma_next again, and the noise is filled up to sigma_next."""
    down = sigma_next * (1.0 + (sigma_next / sigma - 1.0) * eta)
    if down == sigma_next:  # eta 0, a step of no length, or the last one
        return down, 1.0, 0.0
    rescale = (1.0 - sigma_next) / (1.0 - down)
    return down, rescale, math.sqrt(max(sigma_next**2 - (down * rescale) ** 2, 0.0))
