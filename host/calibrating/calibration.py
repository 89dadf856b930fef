"""Calibration: record full precision, ask the quantized model at the same states, gather moments, match them, try it out.

Part by part, and each part's result is put on disk under a name that stands for all inputs, so that after a Cancel or a
crash the same inputs go on where they were. Nothing is kept here between two executions.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any

import comfy.model_management
import comfy.samplers
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ...calibration.collect import RunMoments, same_levels
from ...calibration.moments import StateMoments
from ...calibration.provenance import Provenance
from ...calibration.residual import Residual
from ...calibration.statistics import QDriftStatistics
from ...calibration.trajectories import Call, InFolder
from ...calibration.trial import PLAIN, Trial, compared
from ...calibration.validate import map_fault
from ...core.plan import Plan, make_plan
from .. import identity
from ..correction import BOTH, DRIFT, MOMENTS, REFUSE, Correction, solver_of
from ..sampling.stages import Window
from .closed_loop import match_states
from .recording import Progress, record_all, record_one, run_name
from .resume import Resume, fitted_name
from .sampling_runs import Run, Schedule, final_state, replay
from .twins import Traits

logger = logging.getLogger(__name__)

ABSURD = 0.5  # relative error; no quantized model that works is beyond it at every sigma
DRIFT_ALONE, ALL = "drift", "drift and moments"
CORRECTIONS = (ALL, DRIFT_ALONE)
# What is tried on held-out runs.
CANDIDATES = {
    DRIFT_ALONE: ((PLAIN, 0.0), (DRIFT, 1.0)),
    ALL: ((PLAIN, 0.0), (DRIFT, 1.0), (MOMENTS, 0.5), (MOMENTS, 1.0), (BOTH, 1.0)),
}
# How corrections are tried, and moments matched beside Q-Drift: as the nodes stand by default.
AS_CALIBRATED: dict[str, Any] = {
    "strength": 1.0,
    "channels": "scalar",
    "rule": "auto",
    "variance": "conditional",
    "bias": "off",
    "unsupported": REFUSE,
    "window": Window(0.0, 1.0),
}


@dataclass(frozen=True, eq=False)
class Twins:
    """What is compared. Without `full` its trajectories are already recorded."""

    traits: Traits
    full: ModelPatcher | None
    quantized: ModelPatcher
    full_key: str  # of all that the trajectories depend on but seed and prompt
    quantized_key: str


@dataclass(frozen=True)
class Aim:
    """What is calibrated, and on how many of the runs, the last ones, it is tried."""

    correction: str  # one of CORRECTIONS
    held_out: int

    def model_runs(self, fitted: int) -> int:
        """Whole runs of the quantized model."""
        loops = 2 if self.correction == ALL else 0
        return fitted * (1 + loops) + self.held_out * len(CANDIDATES[self.correction])


class Calibration:
    """One execution of a calibrating node. runs: those to measure, then those held out."""

    def __init__(
        self,
        node: str,
        twins: Twins,
        schedule: Schedule,
        runs: Sequence[Run],
        aim: Aim,
        trim: float | None,
        progress: Progress,
    ):
        self.node, self.twins, self.schedule, self.trim, self.progress = node, twins, schedule, trim, progress
        self.aim = aim
        split = len(runs) - aim.held_out
        self.runs, self.held_out = runs[:split], runs[split:]
        self.plan = self._plan()
        if self.plan is None:
            self.held_out = ()
        key = identity.digest("3", twins.full_key, twins.quantized_key, trim, identity.environment())
        self.resume = Resume(node, key, fitted_name(self.runs, aim.correction))
        self.done = dict(self._resumed())
        if twins.full is not None:
            progress.skip((len(self.held_out) - len(self._untried())) * schedule.steps)  # recorded and tried before

    def two_passes(self, store: InFolder) -> list[RunMoments]:
        """All of full precision first, then all of the quantized model: one of them on the device at a time."""
        left = [run for _, run in self._left()] + self._untried()
        if left:
            comfy.model_management.unload_all_models()
            record_all(self.node, self.twins.full, self.schedule, left, store, self.progress)
            comfy.model_management.unload_all_models()
        return self.second_pass(store)

    def second_pass(self, store: InFolder) -> list[RunMoments]:
        for i, run in self._left():
            self._measure(i, run, store.calls(run_name(run)), store.final(run_name(run)), store.length(run_name(run)))
        return self._results()

    def interleaved(self, store: InFolder) -> list[RunMoments]:
        """Run by run, both models by turns: best where both fit on the device."""
        for i, run in self._left():
            found = record_one(self.node, self.twins.full, self.schedule, run, f"run {i + 1}", self.progress)
            self._measure(i, run, found.calls, found.final, len(found.calls))
        record_all(self.node, self.twins.full, self.schedule, self._untried(), store, self.progress)
        return self._results()

    def maps(self, base: QDriftStatistics) -> dict[str, tuple[Tensor, Tensor]]:
        """Moment matching's maps, (steps, C) scale and shift each: found by itself, and with Q-Drift on."""
        if self.aim.correction != ALL:
            return {}
        wanted = list(self.done[0].states)
        for i in range(1, len(self.runs)):
            wanted = [one.merge(other) for one, other in zip(wanted, self.done[i].states, strict=True)]
        return {kind: self._map(kind, base, wanted) for kind in (MOMENTS, BOTH)}

    def trial(self, statistics: QDriftStatistics, store: InFolder) -> Trial | None:
        """What the corrections do on the held-out runs."""
        if not self.held_out:
            return None
        each = [self._try(i, run, statistics, store) for i, run in enumerate(self.held_out)]  # (run, candidate, 2)
        error, distance = (tuple(tuple(run[c][part] for run in each) for c in range(len(each[0]))) for part in (0, 1))
        return Trial(CANDIDATES[self.aim.correction], error, distance)

    def step_levels(self) -> list[float]:
        """The noise levels at which the schedule's steps end."""
        return [] if self.plan is None else [step.sigma_next for step in self.plan.steps]

    def _plan(self) -> Plan | None:
        """The sampler's steps; None where it has no corrected form and none is needed.

        Raises:
            ValueError: it is needed.
        """
        sampler = comfy.samplers.sampler_object(self.schedule.sampler).sampler_function
        sampling = self.twins.quantized.get_model_object("model_sampling")
        try:
            path = self.twins.traits.path
            return make_plan(solver_of(sampler), self.schedule.sigmas, path=path, model_sampling=sampling)
        except ValueError as error:
            if self.aim.correction == ALL:
                raise ValueError(
                    f"{self.node}: {error} Moments cannot be matched with it: choose another sampler (euler, dpmpp_2m, "
                    f"heun, ...), or set correction to {DRIFT_ALONE!r}."
                ) from error
            if self.aim.held_out:
                logger.warning("%s: %s So nothing can be tried on held-out runs.", self.node, error)
            return None

    def _left(self) -> list[tuple[int, Run]]:
        return [(i, run) for i, run in enumerate(self.runs) if i not in self.done]

    def _untried(self) -> list[Run]:
        return [run for run in self.held_out if self._tried(run) is None]

    def _tried(self, run: Run) -> list[list[float]] | None:
        """What a held-out run gave before it was interrupted, (candidates, 2)."""
        return self.resume.load_trial(run, len(CANDIDATES[self.aim.correction]))

    def _results(self) -> list[RunMoments]:
        return [self.done[i] for i in range(len(self.runs))]

    def _resumed(self) -> Iterator[tuple[int, RunMoments]]:
        steps = self.schedule.steps * (1 if self.twins.full is None else 2)
        for i, run in enumerate(self.runs):
            found = self.resume.load_run(run, self.twins.traits.channels, self.trim)
            if found is None or len(found.states) != (0 if self.plan is None else len(self.plan.steps)):
                continue
            self.progress.say(f"Run {i + 1} of {len(self.runs)} was measured before and is taken over")
            self.progress.skip(steps)
            yield i, found

    def _measure(self, i: int, run: Run, calls: Iterable[Call], final: Tensor, length: int) -> None:
        self.progress.say(f"Quantized, run {i + 1} of {len(self.runs)}: measuring its error")
        result = RunMoments(self.twins.traits.channels, self.trim)
        starts = {step.stages[0].call for step in self.plan.steps[1:]} if self.plan is not None else set()
        met = 0

        def on_call(call: Call, denoised: Tensor) -> None:
            nonlocal met
            result.add(float(call.sigma[0]), call.x, call.denoised, denoised)
            if met in starts:
                result.add_state(call.x)  # where the step before has ended
            met += 1
            self.progress.at(met * self.schedule.steps // length)

        replay(self.node, self.twins.quantized, self.schedule, run, calls, on_call)
        if self.plan is not None:
            result.add_state(final)
        self._check(run, result)
        self.resume.save_run(run, result)
        self.done[i] = result
        self.progress.end(self.schedule.steps)

    def _map(self, kind: str, base: QDriftStatistics, wanted: list[StateMoments]) -> tuple[Tensor, Tensor]:
        found = self.resume.load_map(kind, len(wanted), self.twins.traits.channels)
        parts = len(self.runs) * self.schedule.steps
        if found is not None:
            self.progress.skip(parts)
            return found
        words = "alone" if kind == MOMENTS else "with drift corrected"
        self.progress.say(f"Quantized, {len(self.runs)} runs together: matching moments, {words}")
        correction = Correction(self.node, base, DRIFT if kind == BOTH else MOMENTS, **AS_CALIBRATED)
        sampler = comfy.samplers.sampler_object(self.schedule.sampler).sampler_function
        sampling = self.twins.quantized.get_model_object("model_sampling")
        plan = correction.plan(sampler, self.schedule.sigmas, self.twins.traits.path, sampling)
        done = 0

        def on_step() -> None:
            nonlocal done
            done += 1
            self.progress.at(done)

        scale, shift = match_states(self.node, self.twins.quantized, self.schedule, self.runs, plan, wanted, on_step)
        fault = map_fault(scale, shift)
        if fault:
            raise ValueError(
                f"{self.node}: the maps that match moments {words} cannot be used ({fault}): the quantized model is too far "
                f"from full precision. Look at its picture, or set correction to {DRIFT_ALONE!r}."
            )
        self.resume.save_map(kind, scale, shift)
        self.progress.end(parts)
        return scale, shift

    def _try(self, i: int, run: Run, statistics: QDriftStatistics, store: InFolder) -> list[list[float]]:
        """(candidates, 2): error and distance."""
        candidates = CANDIDATES[self.aim.correction]
        before = self._tried(run)
        if before is not None:
            self.progress.skip(self.schedule.steps * len(candidates))
            return before
        full = store.final(run_name(run))
        measures = []
        for candidate in candidates:
            self.progress.say(f"Held-out run {i + 1} of {len(self.held_out)}: trying {candidate[0]}")
            measures.append(list(compared(self._sampled(run, candidate, statistics), full)))
            self.progress.end(self.schedule.steps)
        self.resume.save_trial(run, measures)
        return measures

    def _sampled(self, run: Run, candidate: tuple[str, float], statistics: QDriftStatistics) -> Tensor:
        sampler = comfy.samplers.sampler_object(self.schedule.sampler)
        kind, strength = candidate
        if kind != PLAIN:
            how = {**AS_CALIBRATED, "strength": strength}
            sampler = Correction(self.node, statistics, kind, **how).corrected(sampler)
        final = final_state(self.twins.quantized, self.schedule, run, sampler, self.progress.at)
        if not bool(final.isfinite().all()):
            raise ValueError(
                f"{self.node}: {kind} ends in NaN or infinity with seed {run.seed}; set held_out to 0 to write the "
                "statistics without a trial, and look at its picture."
            )
        return final

    def _check(self, run: Run, result: RunMoments) -> None:
        errors = result.relative_errors()
        if not errors:
            raise ValueError(f"{self.node}: sampler {self.schedule.sampler} never called the model; choose another.")
        if not same_levels([result, *self.done.values()]):
            raise ValueError(
                f"{self.node}: sampler {self.schedule.sampler} chooses its own noise levels, other ones in each run; "
                "choose one that keeps to the schedule, such as euler or dpmpp_2m."
            )
        if self.done:
            return
        if max(errors) == 0.0:
            raise ValueError(
                f"{self.node}: after run 1 (seed {run.seed}) the error is exactly 0 at every step: the two models are "
                "the same. Connect the quantized one to quantized_model."
            )
        if min(errors) > ABSURD and not identity.simulated(self.twins.quantized):
            raise ValueError(
                f"{self.node}: after run 1 (seed {run.seed}) the error is {min(errors):.0%} of the signal or more at "
                "every step: most likely a quantized file that this ComfyUI cannot read, or another model. Sample "
                "with it alone and look at the picture; update ComfyUI, or take another file."
            )


def full_key(traits: Traits, model: str, schedule: Schedule) -> str:
    """Of all that full precision's trajectories depend on but seed and prompt. model: its identity."""
    return identity.digest(
        model,
        traits.settings(),
        (schedule.latent, schedule.batch_index, schedule.cfg, schedule.sampler, schedule.sigmas),
        identity.environment(),
    )


def statistics(
    results: Sequence[RunMoments], traits: Traits, schedule: Schedule, runs: Sequence[Run], **origin: str
) -> QDriftStatistics:
    """Of all measured runs, the error alone; origin: models' names and digests, quantization, trim."""
    latent = identity.digest(schedule.latent, schedule.batch_index)
    provenance = Provenance(
        path=traits.path,
        latent_channels=traits.channels,
        latent_format=traits.latent_format,
        cfg=schedule.cfg,
        steps=schedule.steps,
        runs=len(runs),
        seeds=tuple(run.seed for run in runs),
        solver=schedule.sampler,
        scheduler=schedule.scheduler,
        prompt_digest=identity.digest([run.prompt for run in runs]),
        sources=tuple(f"{run.prompt} {schedule.sampler} {latent} {run.seed}" for run in runs),
        date=date.today().isoformat(),
        gimbal=identity.version(),
        **identity.environment(),
        **origin,
    )
    return QDriftStatistics.from_runs(results[0].levels, [result.moments for result in results], provenance)


def residuals(results: Sequence[RunMoments]) -> list[Residual]:
    """The shape of the error at each level, over all runs."""
    return [sum(rest, start=first) for first, *rest in zip(*(result.residuals for result in results), strict=True)]
