"""The second part of a calibration: the layer correction's offsets, found run after run in a closed loop."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

import comfy.samplers
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ...calibration.place_means import PlaceMeans
from ...calibration.statistics import QDriftStatistics
from ...calibration.trajectories import TrajectoryStore
from ...core import places
from ...core.layer_correction import LayerOffsets, Layout
from ...core.layer_estimate import ClosedLoop, even_groups, offsets
from ...core.place_hooks import acting
from ...core.places import Place
from ...core.run_means import RunMeans
from ..acting_plan import nested
from ..network_layers import place_fault
from ..protocols import SampledModel
from ..sampling.hooks import NetworkCall, around_network
from .layer_means import level_of
from .recording import run_name
from .sampling_runs import CalibrationRun, final_state
from .task import DRIFT_AND_MOMENTS, Task

logger = logging.getLogger(__name__)
GROUPS = 4  # of the schedule's steps, each with offsets of its own


def worthwhile(node: str, correction: str, full: ModelPatcher, quantized: ModelPatcher) -> bool:
    """Whether a calibration of this pair looks for a layer correction; says why not where it could be expected."""
    if correction != DRIFT_AND_MOMENTS:
        return False
    try:
        places.find(*(model.model.diffusion_model for model in (full, quantized)))
    except ValueError as error:
        logger.info("%s: without layer correction: %s", node, error)
        return False
    return True


def recorded(
    node: str, correction: str, store: TrajectoryStore, runs: list[CalibrationRun], quantized: ModelPatcher
) -> bool:
    """As `worthwhile`, for runs that were recorded before."""
    if correction != DRIFT_AND_MOMENTS:
        return False
    if not all(store.holds_means(run_name(run)) for run in runs):
        logger.info(
            "%s: without layer correction: an earlier version recorded this trajectory, without its layers' means; record "
            "it again.",
            node,
        )
        return False
    try:
        common(_means(store, runs[0]), quantized)
    except ValueError as error:
        logger.info("%s: without layer correction: %s", node, error)
        return False
    return True


def common(means: PlaceMeans, quantized: ModelPatcher) -> tuple[Place, ...]:
    """Of full precision's places those to correct: the residual ones if the quantized network has them all, else blocks.

    Raises:
        ValueError: there are none in common.
    """
    network = quantized.model.diffusion_model
    fault = place_fault(network, means.residual)
    if means.residual and fault is None:
        return means.residual
    blocks = tuple(place for place in means.block if place_fault(network, [place]) is None)
    if not blocks:
        raise ValueError(
            f"the quantized network has no place in common with full precision's ({fault or 'no block'}); load both as one "
            "architecture."
        )
    logger.info(
        "Layer correction acts on blocks' outputs: %s.", fault or "the network has no linear layers to correct"
    )
    return blocks


def with_layers(task: Task, statistics: QDriftStatistics, store: TrajectoryStore) -> QDriftStatistics:
    """The statistics with the layer correction; as they are, and a line in the log, where none can be found."""
    if not task.settings.layers:
        return statistics
    try:
        found = _Search(task, store).offsets()
    except ValueError as error:
        logger.warning("%s: without layer correction: %s", task.node, error)
        return statistics
    # As the file keeps them, so that moments are matched and corrections tried with what will be loaded.
    return replace(statistics, layers=found.to("cpu", torch.bfloat16))


class _Search:
    """Runs of the quantized model, each corrected by the ones before it and by itself."""

    def __init__(self, task: Task, store: TrajectoryStore):
        self._task, self._store = task, store
        self._layout = Layout(common(_means(store, task.runs[0]), task.models.quantized))
        self._groups = even_groups(task.schedule.steps, min(GROUPS, task.schedule.steps))

    def offsets(self) -> LayerOffsets:
        """ValueError if a run's calls do not pass the places as full precision's did."""
        task, shape = self._task, (self._groups[-1] + 1, self._layout.width)
        runs = task.resume.load_layers(shape) or RunMeans(shape)
        task.progress.skip(runs.count * task.schedule.steps)
        for i, run in enumerate(task.runs[runs.count :], runs.count):
            task.progress.say(f"Quantized, run {i + 1} of {len(task.runs)}: correcting its layers")
            runs = runs.with_run(self._difference(run, runs))
            task.resume.save_layers(runs)
            task.progress.end(task.schedule.steps)
        return offsets(self._layout, task.schedule.sigmas[:-1].tolist(), self._groups, runs)

    def _difference(self, run: CalibrationRun, earlier: RunMeans) -> Tensor:
        task = self._task
        full = _means(self._store, run).of(self._layout.places).to(task.models.quantized.load_device)
        loop = ClosedLoop(self._layout, self._groups, full, earlier)

        def correct(call: NetworkCall) -> Tensor:
            level = level_of(task.schedule.sigmas, float(call.sigma.flatten()[0]))
            with acting(call.network, self._layout.places, loop.at(level, call.branches)):
                return call.output()

        stock = comfy.samplers.sampler_object(task.schedule.sampler)

        def sampler(
            model: SampledModel, x: Tensor, sigmas: Tensor, extra_args: dict | None = None, **options: Any
        ) -> Tensor:
            inside = around_network(extra_args or {}, nested(task.inside, correct) or correct)
            return stock.sampler_function(model, x, sigmas, extra_args=inside, **options)

        corrected = comfy.samplers.KSAMPLER(sampler, dict(stock.extra_options), dict(stock.inpaint_options))
        final_state(task.models.quantized, task.schedule, run, corrected, task.progress.at)
        return loop.difference()


def _means(store: TrajectoryStore, run: CalibrationRun) -> PlaceMeans:
    found = store.means(run_name(run))
    if found is None:
        raise ValueError(f"full precision's run with seed {run.seed} has no means of its layers; record it again.")
    return found
