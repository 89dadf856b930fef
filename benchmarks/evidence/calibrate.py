"""Calibration without a server: paired moments for Q-Drift, and moment matching's maps."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from gimbal.calibration.closed_loop import match_states
from gimbal.calibration.moments import JointMoments, StateMoments
from gimbal.calibration.provenance import Provenance
from gimbal.calibration.state_map import StateMap
from gimbal.calibration.statistics import QDriftStatistics
from gimbal.core.plan import Plan
from gimbal.core.solvers import Stepper, run

Denoise = Callable[[Tensor, Tensor], Tensor]
Map = tuple[Tensor, Tensor]  # scale and shift, (C,) each


def statistics(plan: Plan, full: Denoise, quantized: Denoise, x: Tensor) -> QDriftStatistics:
    """The moments of both models' outputs at the states of full precision's trajectory from x (Algorithm 1)."""
    levels: list[float] = []
    moments: list[JointMoments] = []

    def paired(state: Tensor, sigma: Tensor) -> Tensor:
        denoised, rounded = full(state, sigma), quantized(state, sigma)
        levels.append(float(sigma[0]))
        moments.append(JointMoments(x.shape[1]))
        moments[-1].update((state - rounded) / levels[-1], (denoised - rounded) / levels[-1])
        return denoised

    run(plan, paired, x)
    # What a file would say of them; nothing here reads it.
    fields = {"latent_channels": x.shape[1], "latent_format": "", "cfg": 1.0, "runs": 1, "seeds": (0,)}
    about = Provenance(path=plan.path, steps=len(plan.steps), **fields)
    return QDriftStatistics.from_runs(levels, [moments], about)


def conditional_mean(statistics: QDriftStatistics) -> Callable[[float], tuple[Tensor, Tensor, Tensor]]:
    """The bias correction of D2-DPM (METHODS 4.1), as `make_plan` takes it."""

    def terms(sigma: float) -> tuple[Tensor, Tensor, Tensor]:
        slope = statistics.slope(sigma)
        return slope, torch.zeros_like(slope), statistics.intercept(sigma)

    return terms


def state_maps(full_plan: Plan, plan: Plan, full: Denoise, quantized: Denoise, x: Tensor) -> list[Map]:
    """Closed loop (METHODS 4.3): after each step the quantized runs, all at once, are mapped onto full precision's mean
    and deviation per channel, and go on from there. plan: of the quantized runs, with Q-Drift's gains or without."""
    wanted = [StateMoments(x.shape[1]) for _ in full_plan.steps]

    def measure(step: int, state: Tensor) -> Tensor:
        wanted[step].update(state)
        return state

    run(full_plan, full, x, after_step=measure)
    scale, shift = match_states([_QuantizedRuns(plan, x, quantized)], wanted)
    return list(zip(scale, shift, strict=True))


class _QuantizedRuns(Stepper):
    """All of them, as one batch."""

    def __init__(self, plan: Plan, x: Tensor, denoise: Denoise) -> None:
        super().__init__(plan, x)
        self.denoise = denoise

    def step(self) -> None:
        super().step(self.denoise)


def shared_out(
    maps: Sequence[Map], sigmas: Sequence[float], others: Sequence[float], strength: float = 1.0
) -> list[Map]:
    """Maps of one schedule for another, as the pack does it: by the share of each calibrated step that a step covers."""
    stored = StateMap(
        sigmas[0], torch.tensor(sigmas[1:]).double(), *(torch.stack(part) for part in zip(*maps, strict=True))
    )
    return [stored.between(high, low, strength) for high, low in pairwise(others)]


def interpolated(maps: Sequence[Map], sigmas: Sequence[float], others: Sequence[float]) -> list[Map]:
    """The naive way: each step's map is that of the calibrated step that ends there, linear in log sigma between."""
    ends = [math.log(sigma) for sigma in sigmas[1:-1]]

    def at(sigma: float) -> Map:
        if sigma == 0.0:
            return maps[-1]
        place = min(max(math.log(sigma), ends[-1]), ends[0])
        after = next(i for i, end in enumerate(ends) if end <= place)
        before = max(after - 1, 0)
        width = ends[before] - ends[after]
        share = (ends[before] - place) / width if width else 0.0
        return tuple(torch.lerp(a, b, share) for a, b in zip(maps[before], maps[after], strict=True))

    return [at(sigma) for sigma in others[1:]]


def mapped(state: Tensor, pair: Map) -> Tensor:
    scale, shift = (part.to(state.dtype).view(-1, *[1] * (state.ndim - 2)) for part in pair)
    return state * scale + shift
