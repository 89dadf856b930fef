"""Paired calibration: record full precision, ask the quantized model at the same states, gather moments, resume.

Run by run, and after each run the moments are put on disk under a name that stands for all inputs, so that after a
Cancel or a crash the same inputs go on where they were. Nothing is kept here between two executions.
"""

from __future__ import annotations

import logging
import shutil
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import comfy.model_management
import comfy.utils
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ..calibration.collect import RunMoments, same_levels
from ..calibration.provenance import Provenance
from ..calibration.residual import Residual
from ..calibration.statistics import QDriftStatistics
from ..calibration.trajectory import Call, InFolder, InMemory, Store
from . import _origin, _qdrift_folder
from ._trajectory import Run, Schedule, record, replay
from ._twins import Traits

logger = logging.getLogger(__name__)

ABSURD = 0.5  # relative error; no quantized model that works is beyond it at every sigma
IN_MEMORY = 2 * 2**30  # bytes of trajectories that wait in memory; more wait in ComfyUI's temp folder


class Progress:
    """One bar over everything, and words on the node and in the log."""

    def __init__(self, node: str, node_id: str | None, total: int):
        self.node, self.node_id = node, node_id
        self._bar = comfy.utils.ProgressBar(total)
        self._done = 0

    def say(self, words: str) -> None:
        logger.info("%s: %s.", self.node, words)
        server = getattr(getattr(sys.modules.get("server"), "PromptServer", None), "instance", None)
        if self.node_id is not None and hasattr(server, "send_progress_text"):
            server.send_progress_text(words, self.node_id)

    def at(self, part: int) -> None:
        """This much of the present part is done."""
        self._bar.update_absolute(self._done + part)

    def end(self, part: int) -> None:
        self._done += part
        self.at(0)


@dataclass(frozen=True, eq=False)
class Twins:
    """What is compared. Without `full` its trajectories are already recorded."""

    traits: Traits
    full: ModelPatcher | None
    quantized: ModelPatcher
    full_key: str  # of all that the trajectories depend on but seed and prompt
    quantized_key: str


class Calibration:
    """One execution of a calibrating node."""

    def __init__(
        self, node: str, twins: Twins, schedule: Schedule, runs: Sequence[Run], trim: float | None, progress: Progress
    ):
        self.node, self.twins, self.schedule, self.runs, self.trim = node, twins, schedule, runs, trim
        self.progress = progress
        key = _origin.digest("1", twins.full_key, twins.quantized_key, trim, _origin.environment())
        self.folder = _qdrift_folder.resume_path(key)
        self.done = dict(self._resumed())

    def two_passes(self, store: Store) -> list[RunMoments]:
        """All of full precision first, then all of the quantized model: one of them on the device at a time."""
        left = self._left()
        if left:
            comfy.model_management.unload_all_models()
            record_all(self.node, self.twins.full, self.schedule, [run for _, run in left], store, self.progress)
            comfy.model_management.unload_all_models()
        return self.second_pass(store)

    def second_pass(self, store: Store) -> list[RunMoments]:
        for i, run in self._left():
            self._measure(i, run, store.calls(name(run)), store.length(name(run)))
        return self._results()

    def interleaved(self) -> list[RunMoments]:
        """Run by run, both models by turns: best where both fit on the device."""
        for i, run in self._left():
            calls = record_one(self.node, self.twins.full, self.schedule, run, f"run {i + 1}", self.progress)
            self._measure(i, run, calls, len(calls))
        return self._results()

    def clear(self) -> None:
        """After the statistics are safe: forget what was kept for a resume."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _left(self) -> list[tuple[int, Run]]:
        return [(i, run) for i, run in enumerate(self.runs) if i not in self.done]

    def _results(self) -> list[RunMoments]:
        return [self.done[i] for i in range(len(self.runs))]

    def _resumed(self) -> Iterator[tuple[int, RunMoments]]:
        steps = self.schedule.steps * (1 if self.twins.full is None else 2)
        for i, run in enumerate(self.runs):
            try:
                found = RunMoments.load(self._path(run), self.twins.traits.channels, self.trim)
            except FileNotFoundError:
                continue
            except ValueError as error:
                logger.warning("%s: %s Measuring that run again.", self.node, error)
                continue
            self.progress.say(f"Run {i + 1} of {len(self.runs)} was measured before and is taken over")
            self.progress.end(steps)
            yield i, found

    def _path(self, run: Run) -> Path:
        return self.folder / f"{name(run)}.partial"

    def _measure(self, i: int, run: Run, calls: Iterable[Call], length: int) -> None:
        self.progress.say(f"Quantized, run {i + 1} of {len(self.runs)}: measuring its error")
        result = RunMoments(self.twins.traits.channels, self.trim)
        met = 0

        def on_call(call: Call, denoised: Tensor) -> None:
            nonlocal met
            result.add(float(call.sigma[0]), call.x, call.denoised, denoised)
            met += 1
            self.progress.at(met * self.schedule.steps // length)

        replay(self.node, self.twins.quantized, self.schedule, run, calls, on_call)
        self._check(run, result)
        result.save(self._path(run))
        self.done[i] = result
        self.progress.end(self.schedule.steps)

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
        if min(errors) > ABSURD and not _origin.simulated(self.twins.quantized):
            raise ValueError(
                f"{self.node}: after run 1 (seed {run.seed}) the error is {min(errors):.0%} of the signal or more at "
                "every step: most likely a quantized file that this ComfyUI cannot read, or another model. Sample "
                "with it alone and look at the picture; update ComfyUI, or take another file."
            )


def record_all(
    node: str, model: ModelPatcher, schedule: Schedule, runs: Sequence[Run], store: Store, progress: Progress
) -> None:
    """Full precision into the store, but for what it holds already."""
    for i, run in enumerate(runs):
        if store.holds(name(run)):
            progress.end(schedule.steps)
        else:
            store.put(name(run), record_one(node, model, schedule, run, f"run {i + 1} of {len(runs)}", progress))


def record_one(
    node: str, model: ModelPatcher, schedule: Schedule, run: Run, which: str, progress: Progress
) -> list[Call]:
    progress.say(f"Full precision, {which}: recording")
    calls = record(node, model, schedule, run, progress.at)
    progress.end(schedule.steps)
    return calls


def name(run: Run) -> str:
    return f"run_{_origin.digest(run.prompt, run.seed)}"


def store_for(twins: Twins, schedule: Schedule, runs: Sequence[Run]) -> Store:
    """Memory, or the temp folder for what is too large for it. Two tensors a call."""
    positions = schedule.latent.numel() // schedule.latent.shape[1]
    needed = 8 * positions * twins.traits.channels * schedule.steps * len(runs)
    return InMemory() if needed <= IN_MEMORY else InFolder(_qdrift_folder.temporary_path(twins.full_key))


def full_key(traits: Traits, identity: str, schedule: Schedule) -> str:
    return _origin.digest(
        identity,
        traits.settings(),
        (schedule.latent, schedule.batch_index, schedule.cfg, schedule.sampler, schedule.sigmas),
        _origin.environment(),
    )


def statistics(
    results: Sequence[RunMoments], traits: Traits, schedule: Schedule, runs: Sequence[Run], **origin: str
) -> QDriftStatistics:
    """Of all runs; origin: models' names and digests, quantization, trim."""
    latent = _origin.digest(schedule.latent, schedule.batch_index)
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
        prompt_digest=_origin.digest([run.prompt for run in runs]),
        sources=tuple(f"{run.prompt} {schedule.sampler} {latent} {run.seed}" for run in runs),
        date=date.today().isoformat(),
        gimbal=_origin.version(),
        **_origin.environment(),
        **origin,
    )
    return QDriftStatistics.from_runs(results[0].levels, [result.moments for result in results], provenance)


def residuals(results: Sequence[RunMoments]) -> list[Residual]:
    """The shape of the error at each level, over all runs."""
    return [sum(rest, start=first) for first, *rest in zip(*(result.residuals for result in results), strict=True)]
