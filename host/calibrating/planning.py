"""Before the rest of a calibration: which steps and layers are to see unrounded activations, under a budget."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace

import comfy.model_management
import comfy.samplers
from torch import Tensor

from ...calibration.found_plan import FoundPlan
from ...calibration.trajectories import TrajectoryStore
from ...calibration.trial import compared
from ...core.precision_plan import Candidate, PrecisionPlan, choose, parts_within
from ..acting_plan import ActingPlan, Around
from ..precision import NOTHING_ROUNDED, counted
from ..precision_switches import switches
from ..protocols import SampledModel
from ..sampling.hooks import NetworkCall, around_network
from .layer_means import PlaceWatch
from .recording import record_all, run_name
from .sampling_runs import CalibrationRun, final_state
from .task import Task

logger = logging.getLogger(__name__)
RUNS = 2  # on which each candidate is measured


def with_plan(task: Task, store: TrajectoryStore) -> Task:
    """The task under the plan that fits its budget best; as it is, and a line in the log, where none helps.

    Each range of steps and each group of layers is left unrounded alone, in a whole run from the noise of a recorded one;
    what counts is the final latent's squared error. Records the full-precision runs that it needs.
    """
    if not task.settings.budget:
        return task
    runs = task.runs[:RUNS]
    _record(task, runs, store)
    products = _Products()
    plain = [_error(task, store, run, 0, products) for run in runs]
    if not products.found:  # resumed, or a model that rounds nothing
        _count(task, runs[0], products)
    if not any(products.found.values()):
        return _without(task, NOTHING_ROUNDED)
    exemptions = parts_within(task.settings.budget, task.schedule.sigmas.tolist(), products.found)
    task.progress.grow(len(runs) * len(exemptions) * task.schedule.steps)
    candidates = []
    for number, exemption in enumerate(exemptions, 1):
        acting = ActingPlan(PrecisionPlan((exemption,)))
        words = f"Quantized: part {number} of {len(exemptions)} with unrounded activations"
        errors = [_error(task, store, run, number, acting, words) for run in runs]
        candidates.append(Candidate.measured(exemption, errors, plain))
    sigmas = task.schedule.sigmas[:-1].tolist()
    plan = choose(candidates, sigmas, products.found, task.settings.budget)
    if not plan.exemptions:
        return _without(
            task, "no range of steps and no group of layers that fits the budget lowers the error clearly."
        )
    share = plan.share(sigmas, products.found)
    found = FoundPlan(plan, task.settings.budget, share, tuple(candidates))
    logger.info("%s: precision plan: %s.", task.node, found.describe())
    return replace(task, precision=found, settings=replace(task.settings, planned=True))


def _without(task: Task, reason: str) -> Task:
    logger.warning("%s: without a precision plan: %s", task.node, reason)
    return task


def _record(task: Task, runs: Sequence[CalibrationRun], store: TrajectoryStore) -> None:
    """Full precision's runs, as far as they are not there."""
    steps = task.schedule.steps
    task.progress.grow(2 * len(runs) * steps)  # these, which are met again later, and the quantized model's plain ones
    full = task.models.full
    if full is None:
        task.progress.skip(len(runs) * steps)
        return
    watch = PlaceWatch(task.node, task.schedule.sigmas) if task.settings.layers else None
    if not task.settings.interleaved:
        comfy.model_management.unload_all_models()
    record_all(task.node, full, task.schedule, runs, store, task.progress, watch)
    if not task.settings.interleaved:
        comfy.model_management.unload_all_models()


def _error(
    task: Task,
    store: TrajectoryStore,
    run: CalibrationRun,
    number: int,
    around: Around,
    words: str = "Quantized, for the precision plan: plain",
) -> float:
    """Of the final latent against full precision's, squared. number: of the candidate; 0 for none."""
    kept = task.resume.load_error(run, number)
    if kept is not None:
        task.progress.skip(task.schedule.steps)
        return kept
    task.progress.say(words)
    stock = comfy.samplers.sampler_object(task.schedule.sampler)

    def sampler(
        model: SampledModel, x: Tensor, sigmas: Tensor, extra_args: dict | None = None, **more: object
    ) -> Tensor:
        inside = around_network(extra_args or {}, around)
        return stock.sampler_function(model, x, sigmas, extra_args=inside, **more)

    changed = comfy.samplers.KSAMPLER(sampler, dict(stock.extra_options), dict(stock.inpaint_options))
    final = final_state(task.models.quantized, task.schedule, run, changed, task.progress.at)
    if not bool(final.isfinite().all()):
        raise ValueError(
            f"{task.node}: the quantized model ends in NaN or infinity with seed {run.seed}; the file may be broken or of a "
            "format that this ComfyUI cannot read. Look at its picture, or set budget to 0."
        )
    error = compared(final, store.final(run_name(run)))[0]
    task.resume.save_error(run, number, error)
    task.progress.end(task.schedule.steps)
    return error


class _Products:
    """What `around_network` takes to count the multiply-adds of each layer that rounds, in the first call."""

    def __init__(self) -> None:
        self.found: dict[str, int] = {}
        self._met = False

    def __call__(self, call: NetworkCall) -> Tensor:
        if self._met:
            return call.output()
        self._met = True
        with counted([each for each in switches(call.network) if each.rounds()], self.found):
            return call.output()


def _count(task: Task, run: CalibrationRun, products: _Products) -> None:
    """By one call of the quantized model."""

    def sampler(model: SampledModel, x: Tensor, sigmas: Tensor, extra_args: dict | None = None, **_: object) -> Tensor:
        model(x, sigmas[:1].expand(len(x)), **around_network(extra_args or {}, products))
        return x

    final_state(task.models.quantized, task.schedule, run, comfy.samplers.KSAMPLER(sampler), lambda step: None)
