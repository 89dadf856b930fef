"""The closed loop of moment matching: all quantized runs go on together, and each step's map is found where they are.

Every map corrects what the earlier ones have left (METHODS.md section 4.3). The runs differ in their prompts, so each takes
its step in a sampling of its own; what a run remembers waits here between its steps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import comfy.model_management
import comfy.samplers
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ...calibration.moments import StateMoments, match
from ...core.match import Matching
from ...core.plan import Plan
from ...core.solvers import Stepper
from ..correction import noise_sources
from .sampling_runs import Run, Schedule, sample


def match_states(
    node: str,
    model: ModelPatcher,
    schedule: Schedule,
    runs: Sequence[Run],
    plan: Plan,
    wanted: Sequence[StateMoments],
    on_step: Callable[[], None],
) -> tuple[Tensor, Tensor]:
    """The maps that give the quantized runs' states, after each step of the plan, full precision's moments.

    Args:
        wanted: full precision's moments after each step, over the same runs.
        on_step: called after each step of each run.
    Returns:
        scale, shift: (steps, C) float64.
    Raises:
        ValueError: the quantized model leads to NaN.
    """
    steppers: dict[Run, Stepper] = {}
    maps = []
    for i, target in enumerate(wanted):
        found = StateMoments(target.channels)
        for run in runs:
            _advance(model, schedule, run, plan, steppers)
            if not bool(steppers[run].state.isfinite().all()):
                raise ValueError(
                    f"{node}: the quantized model leads to NaN or infinity in step {i + 1}, seed {run.seed}; the file may "
                    "be broken or of a format that this ComfyUI cannot read."
                )
            found.update(steppers[run].state)
            on_step()
        maps.append(match(target, found))
        matching = Matching([maps[-1]])
        for stepper in steppers.values():
            stepper.state = matching(0, stepper.state)
    scales, shifts = zip(*maps, strict=True)
    return torch.stack(scales), torch.stack(shifts)


def _advance(model: ModelPatcher, schedule: Schedule, run: Run, plan: Plan, steppers: dict[Run, Stepper]) -> None:
    def sampler(model: Any, x: Tensor, sigmas: Tensor, extra_args: dict | None = None, **_: Any) -> Tensor:
        extra_args = extra_args or {}
        if run not in steppers:
            steppers[run] = Stepper(plan, x, **noise_sources(plan, x, extra_args.get("seed")))

        def denoise(at: Tensor, sigma: Tensor) -> Tensor:
            comfy.model_management.throw_exception_if_processing_interrupted()
            return model(at, sigma, **extra_args)

        steppers[run].step(denoise)
        return x  # ComfyUI wants a latent back; this one is of no interest

    sample(model, schedule, run, comfy.samplers.KSAMPLER(sampler), None)
