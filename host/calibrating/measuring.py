"""The first part of a calibration: the quantized model's error at the states of full precision's runs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import comfy.model_management
from torch import Tensor

from ...calibration.collect import RunMoments, same_levels
from ...calibration.trajectories import ModelCall, TrajectoryStore
from .. import identity
from .layer_means import PlaceWatch
from .recording import record_all, record_one, run_name
from .sampling_runs import CalibrationRun, replay
from .task import Task

MAX_RELATIVE_ERROR = 0.5  # relative error; no quantized model that works is beyond it at every sigma


def measure(task: Task, store: TrajectoryStore) -> list[RunMoments]:
    """Of each run what its error was, and full precision's states. Leaves the held-out runs in the store.

    Raises:
        ValueError: the models are the same, or no pair; the sampler cannot be calibrated with; NaN.
    """
    done = _resumed(task, store)
    watch = PlaceWatch(task.node, task.schedule.sigmas) if task.settings.layers else None
    left = [(i, run) for i, run in enumerate(task.runs) if i not in done]
    untried = [run for run in task.held_out if not task.resume.tried(run, task.settings.candidates)]
    full = task.models.full
    if full is not None:
        task.progress.skip((len(task.held_out) - len(untried)) * task.schedule.steps)  # recorded and tried before
    if full is not None and task.settings.interleaved:
        for i, run in left:
            if store.holds(run_name(run)) and (watch is None or store.holds_means(run_name(run))):
                task.progress.skip(task.schedule.steps)
                done[i] = _replayed(task, store, done, i)
                continue
            found = record_one(task.node, full, task.schedule, run, f"run {i + 1}", task.progress, watch)
            if found.means is not None:
                store.put_means(run_name(run), found.means)
            done[i] = _measured(task, done, i, found.calls, found.final, len(found.calls))
        record_all(task.node, full, task.schedule, untried, store, task.progress)
    else:
        if full is not None and (left or untried):  # one of the models on the device at a time
            comfy.model_management.unload_all_models()
            record_all(task.node, full, task.schedule, [run for _, run in left], store, task.progress, watch)
            record_all(task.node, full, task.schedule, untried, store, task.progress)
            comfy.model_management.unload_all_models()
        for i, _ in left:
            done[i] = _replayed(task, store, done, i)
    return [done[i] for i in range(len(task.runs))]


def _resumed(task: Task, store: TrajectoryStore) -> dict[int, RunMoments]:
    """What was measured before an interruption."""
    done = {}
    steps = task.schedule.steps * (1 if task.models.full is None else 2)
    for i, run in enumerate(task.runs):
        found = task.resume.load_run(run, task.models.traits.channels, task.settings.trim)
        if found is None or len(found.states) != (0 if task.plan is None else len(task.plan.steps)):
            continue
        if task.settings.layers and not store.holds_means(run_name(run)):
            continue
        task.progress.say(f"Run {i + 1} of {len(task.runs)} was measured before and is taken over")
        task.progress.skip(steps)
        done[i] = found
    return done


def _replayed(task: Task, store: TrajectoryStore, done: Mapping[int, RunMoments], i: int) -> RunMoments:
    """From full precision's run in the store."""
    name = run_name(task.runs[i])
    return _measured(task, done, i, store.calls(name), store.final(name), store.length(name))


def _measured(
    task: Task, done: Mapping[int, RunMoments], i: int, calls: Iterable[ModelCall], final: Tensor, length: int
) -> RunMoments:
    run = task.runs[i]
    task.progress.say(f"Quantized, run {i + 1} of {len(task.runs)}: measuring its error")
    result = RunMoments(task.models.traits.channels, task.settings.trim)
    starts = set() if task.plan is None else {step.stages[0].call for step in task.plan.steps[1:]}
    met = 0

    def on_call(call: ModelCall, denoised: Tensor) -> None:
        nonlocal met
        result.add(float(call.sigma[0]), call.x, call.denoised, denoised)
        if met in starts:
            result.add_state(call.x)  # where the step before has ended
        met += 1
        task.progress.at(met * task.schedule.steps // length)

    replay(task.node, task.models.quantized, task.schedule, run, calls, on_call, task.inside)
    if task.plan is not None:
        result.add_state(final)
    _check(task, run, result, done)
    task.resume.save_run(run, result)
    task.progress.end(task.schedule.steps)
    return result


def _check(task: Task, run: CalibrationRun, result: RunMoments, done: Mapping[int, RunMoments]) -> None:
    errors, node, sampler = result.relative_errors(), task.node, task.schedule.sampler
    if not errors:
        raise ValueError(f"{node}: sampler {sampler} never called the model; choose another.")
    if not same_levels([result, *done.values()]):
        raise ValueError(
            f"{node}: sampler {sampler} chooses its own noise levels, other ones in each run; "
            "choose one that keeps to the schedule, such as euler or dpmpp_2m."
        )
    if done:
        return
    if max(errors) == 0.0:
        raise ValueError(
            f"{node}: after run 1 (seed {run.seed}) the error is exactly 0 at every step: the two models are "
            "the same. Connect the quantized one to quantized_model."
        )
    if min(errors) > MAX_RELATIVE_ERROR and not identity.simulated_quantizations(task.models.quantized):
        raise ValueError(
            f"{node}: after run 1 (seed {run.seed}) the error is {min(errors):.0%} of the signal or more at "
            "every step: most likely a quantized file that this ComfyUI cannot read, or another model. Sample "
            "with it alone and look at the picture; update ComfyUI, or take another file."
        )
