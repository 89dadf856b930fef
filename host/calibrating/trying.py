"""The third part of a calibration: what the corrections do on held-out runs."""

from __future__ import annotations

from dataclasses import replace

import comfy.samplers
from torch import Tensor

from ...calibration.statistics import QDriftStatistics
from ...calibration.trajectories import TrajectoryStore
from ...calibration.trial import PLAIN, Trial, Tried, judged
from ..corrected_sampler import corrected
from ..correction import Correction
from ..latent_decoder import latent_decoder
from .recording import run_name
from .resume import Candidate
from .sampling_runs import CalibrationRun, final_state
from .task import CALIBRATED_OPTIONS, Task


def try_corrections(task: Task, statistics: QDriftStatistics, store: TrajectoryStore) -> Trial | None:
    """None without held-out runs.

    Raises:
        ValueError: a correction ends in NaN.
    """
    if not task.held_out:
        return None
    if task.settings.layers and statistics.layers is None:  # looked for and not found
        task = replace(task, settings=replace(task.settings, layers=False))
    runs = [_try(task, i, statistics, store) for i in range(len(task.held_out))]
    return Trial.of(task.settings.candidates, runs)


def _try(task: Task, i: int, statistics: QDriftStatistics, store: TrajectoryStore) -> list[Tried]:
    """What each candidate gives on one run."""
    run, decode = task.held_out[i], latent_decoder(task.models.quantized)
    found = []
    for candidate in task.settings.candidates:
        tried = task.resume.load_trial(run, candidate)
        if tried is None:
            task.progress.say(f"Held-out run {i + 1} of {len(task.held_out)}: trying {candidate[0]}")
            tried = judged(_sampled(task, run, candidate, statistics), store.final(run_name(run)), decode)
            task.resume.save_trial(run, candidate, tried)
            task.progress.end(task.schedule.steps)
        else:
            task.progress.skip(task.schedule.steps)
        found.append(tried)
    return found


def _sampled(task: Task, run: CalibrationRun, candidate: Candidate, statistics: QDriftStatistics) -> Tensor:
    sampler = comfy.samplers.sampler_object(task.schedule.sampler)
    kind, strength = candidate
    if kind != PLAIN:
        how = {**CALIBRATED_OPTIONS, "strength": strength}
        sampler = corrected(Correction(task.node, statistics, kind, **how), sampler)
    final = final_state(task.models.quantized, task.schedule, run, sampler, task.progress.at)
    if not bool(final.isfinite().all()):
        raise ValueError(
            f"{task.node}: {kind} ends in NaN or infinity with seed {run.seed}; set held_out to 0 to write the "
            "statistics without a trial, and look at its picture."
        )
    return final
