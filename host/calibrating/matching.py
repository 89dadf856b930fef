"""The second part of a calibration: the maps of moment matching, found in a closed loop."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import comfy.model_management
import comfy.samplers
from torch import Tensor

from ...calibration.closed_loop import match_states
from ...calibration.collect import RunMoments
from ...calibration.correctors import CORRECTORS, found, map_names
from ...calibration.moments import StateMoments
from ...calibration.statistics import QDriftStatistics
from ...calibration.validate import map_fault
from ...core.plan import Plan
from ...core.shapes import to_float64
from ...core.solvers import Stepper
from ..acting_plan import Around
from ..correction import Correction, noise_sources
from ..protocols import SampledModel
from ..sampling.hooks import around_network
from .sampling_runs import CalibrationRun, sample
from .task import CALIBRATED_OPTIONS, DRIFT_ALONE, Task

WORDS = {"": "alone", "drift": "with drift corrected", "layers": "with layers corrected"}


def with_maps(task: Task, statistics: QDriftStatistics, results: Sequence[RunMoments]) -> QDriftStatistics:
    """The statistics with sets of maps: found by themselves, and beside the other corrections that they hold.

    Raises:
        ValueError: the quantized model leads to NaN, or to states that no bounded map brings back.
    """
    wanted = list(results[0].states)
    for result in results[1:]:
        wanted = [one.merge(other) for one, other in zip(wanted, result.states, strict=True)]
    assert task.plan is not None  # without one, moments cannot be asked for
    tensors: dict[str, Any] = {"state_sigma": to_float64([step.sigma_next for step in task.plan.steps])}
    for name in found(maps=True, layers=statistics.layers is not None):
        beside = CORRECTORS[name].maps
        if beside is not None:
            parts = _map(task, name, statistics, wanted)
            tensors |= {field: part.float() for field, part in zip(map_names(beside), parts, strict=True)}
    return replace(statistics, **tensors)


def _map(task: Task, kind: str, statistics: QDriftStatistics, wanted: Sequence[StateMoments]) -> tuple[Tensor, Tensor]:
    """scale and shift, (steps, C) float64 each."""
    before = task.resume.load_map(kind, len(wanted), task.models.traits.channels)
    parts = len(task.runs) * task.schedule.steps
    if before is not None:
        task.progress.skip(parts)
        return before
    words = WORDS[CORRECTORS[kind].maps or ""]
    task.progress.say(f"Quantized, {len(task.runs)} runs together: matching moments, {words}")
    correction = Correction(task.node, statistics, kind, **CALIBRATED_OPTIONS)
    inside = correction.inside(task.models.quantized)
    sampler = comfy.samplers.sampler_object(task.schedule.sampler).sampler_function
    sampling = task.models.quantized.get_model_object("model_sampling")
    plan = correction.plan(sampler, task.schedule.sigmas, task.models.traits.path, sampling)
    done = 0

    def on_step() -> None:
        nonlocal done
        done += 1
        task.progress.at(done)

    scale, shift = match_states([_QuantizedRun(task, run, plan, inside) for run in task.runs], wanted, on_step)
    fault = map_fault(scale, shift)
    if fault:
        raise ValueError(
            f"{task.node}: the maps that match moments {words} cannot be used ({fault}): the quantized model is too far "
            f"from full precision. Look at its picture, or set correction to {DRIFT_ALONE!r}."
        )
    task.resume.save_map(kind, scale, shift)
    task.progress.end(parts)
    return scale, shift


class _QuantizedRun:
    """A run whose steps are samplings of their own, as runs that go on together differ in their prompts."""

    def __init__(self, task: Task, run: CalibrationRun, plan: Plan, inside: Around | None):
        self._task, self._run, self._plan, self._inside = task, run, plan, inside
        self._stepper: Stepper | None = None

    @property
    def state(self) -> Tensor:
        assert self._stepper is not None  # it has taken a step
        return self._stepper.state

    @state.setter
    def state(self, value: Tensor) -> None:
        assert self._stepper is not None
        self._stepper.state = value

    def step(self) -> None:
        """ValueError if the quantized model leads to NaN."""
        task = self._task
        sample(task.models.quantized, task.schedule, self._run, comfy.samplers.KSAMPLER(self._sampler), None)
        assert self._stepper is not None
        if not bool(self.state.isfinite().all()):
            raise ValueError(
                f"{task.node}: the quantized model leads to NaN or infinity in step {self._stepper.done}, seed "
                f"{self._run.seed}; the file may be broken or of a format that this ComfyUI cannot read."
            )

    def _sampler(
        self, model: SampledModel, x: Tensor, sigmas: Tensor, extra_args: dict | None = None, **_: Any
    ) -> Tensor:
        extra_args = extra_args or {}
        if self._inside is not None:
            extra_args = around_network(extra_args, self._inside)
        if self._stepper is None:
            self._stepper = Stepper(self._plan, x, **noise_sources(self._plan, x, extra_args.get("seed")))

        def denoise(at: Tensor, sigma: Tensor) -> Tensor:
            comfy.model_management.throw_exception_if_processing_interrupted()
            return model(at, sigma, **extra_args)

        self._stepper.step(denoise)
        return x  # ComfyUI wants a latent back; this one is of no interest
