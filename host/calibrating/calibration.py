"""One calibration: measure the quantized model's error, match its moments, try the corrections out.

Each part's result is put on disk under a name that stands for all inputs, so that after a Cancel or a crash the same
inputs go on where they were. Nothing is kept here between two executions.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import date

import comfy.samplers

from ...calibration.collect import RunMoments
from ...calibration.provenance import Provenance
from ...calibration.residual import Residual
from ...calibration.statistics import QDriftStatistics
from ...calibration.trajectories import TrajectoryStore
from ...core.plan import Plan, make_plan
from .. import identity
from ..correction import solver_of
from .layers import with_layers
from .matching import with_maps
from .measuring import measure
from .model_pair import ModelPair
from .planning import with_plan
from .recording import Progress
from .resume import Resume, fitted_name
from .sampling_runs import CalibrationRun, Schedule
from .task import DRIFT_ALONE, DRIFT_AND_MOMENTS, Settings, Task
from .trying import try_corrections

logger = logging.getLogger(__name__)


class Calibration:
    """One execution of a calibrating node.

    Args:
        runs: those to measure, then those held out.
        origin: of the provenance, the models' names and digests and the quantization.
    Attributes:
        residuals: after `run`, the shape of the error at each level, over all runs.
    Raises:
        ValueError: the sampler has no corrected form, and moments are to be matched; budget is no share.
    """

    def __init__(
        self,
        node: str,
        models: ModelPair,
        schedule: Schedule,
        runs: Sequence[CalibrationRun],
        settings: Settings,
        progress: Progress,
        origin: Mapping[str, str],
    ):
        if not 0.0 <= settings.budget <= 1.0:
            raise ValueError(f"{node}: budget is {settings.budget}; set a share of 0 (no plan) to 1.")
        plan = _plan(node, models, schedule, settings)
        split = len(runs) - settings.held_out
        measured, held_out = tuple(runs[:split]), tuple(runs[split:])
        key = identity.digest(
            "4", models.full_key, models.quantized_key, settings.trim, settings.budget, identity.environment()
        )
        resume = Resume(node, key, fitted_name(measured, settings.correction))
        held_out = () if plan is None else held_out
        self.task = Task(node, models, schedule, measured, held_out, settings, plan, resume, progress)
        self.residuals: list[Residual] = []
        self._origin = dict(origin)

    def run(self, store: TrajectoryStore) -> QDriftStatistics:
        """Everything, from what an earlier execution of the same inputs left.

        Args:
            store: holds full precision's runs already, or takes them.
        Raises:
            ValueError: the models, the sampler or the file cannot be calibrated with; says why.
        """
        self.task = with_plan(self.task, store)
        results = measure(self.task, store)
        self.residuals = residuals(results)
        found = self._statistics(results)
        found = with_layers(self.task, found, store)
        if self.task.settings.correction == DRIFT_AND_MOMENTS:
            found = with_maps(self.task, found, results)
        return replace(found, trial=try_corrections(self.task, found, store))

    def forget(self) -> None:
        """Once the statistics are safe: remove what was kept for a resume."""
        self.task.resume.clear()

    def _statistics(self, results: Sequence[RunMoments]) -> QDriftStatistics:
        """Of all measured runs, the error alone."""
        task, schedule, traits = self.task, self.task.schedule, self.task.models.traits
        latent = identity.digest(schedule.latent, schedule.batch_index)
        provenance = Provenance(
            path=traits.path,
            latent_channels=traits.channels,
            latent_format=traits.latent_format,
            cfg=schedule.cfg,
            steps=schedule.steps,
            runs=len(task.runs),
            seeds=tuple(run.seed for run in task.runs),
            solver=schedule.sampler,
            scheduler=schedule.scheduler,
            prompt_digest=identity.digest([run.prompt for run in task.runs]),
            sources=tuple(f"{run.prompt} {schedule.sampler} {latent} {run.seed}" for run in task.runs),
            trim=f"{task.settings.trim:g} per element" if task.settings.trim else "",  # once whole positions went
            date=date.today().isoformat(),
            gimbal=identity.version(),
            **identity.environment(),
            **self._origin,
        )
        found = QDriftStatistics.from_runs(results[0].levels, [result.moments for result in results], provenance)
        return found if task.precision is None else replace(found, plan=task.precision)


def residuals(results: Sequence[RunMoments]) -> list[Residual]:
    """The shape of the error at each level, over all runs."""
    return [sum(rest, start=first) for first, *rest in zip(*(result.residuals for result in results), strict=True)]


def _plan(node: str, models: ModelPair, schedule: Schedule, settings: Settings) -> Plan | None:
    """The sampler's steps; None where it has no corrected form and none is needed."""
    sampler = comfy.samplers.sampler_object(schedule.sampler).sampler_function
    sampling = models.quantized.get_model_object("model_sampling")
    try:
        return make_plan(solver_of(sampler), schedule.sigmas, path=models.traits.path, model_sampling=sampling)
    except ValueError as error:
        if settings.correction == DRIFT_AND_MOMENTS:
            raise ValueError(
                f"{node}: {error} Moments cannot be matched with it: choose another sampler (euler, dpmpp_2m, "
                f"heun, ...), or set correction to {DRIFT_ALONE!r}."
            ) from error
        if settings.held_out:
            logger.warning("%s: %s So nothing can be tried on held-out runs.", node, error)
        return None
