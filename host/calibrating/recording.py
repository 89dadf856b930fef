"""Full-precision runs on their way into a store, and the one bar that shows how far all of a calibration is."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from typing import Any

import comfy.utils
from comfy.model_patcher import ModelPatcher

from ...calibration.trajectories import InFolder, InMemory, Store, Trajectory
from .. import identity, qdrift_folder
from .sampling_runs import Run, Schedule, record

logger = logging.getLogger(__name__)

IN_MEMORY = 2 * 2**30  # bytes of trajectories that wait in memory; more wait in ComfyUI's temp folder


class Progress:
    """One bar over everything, and words on the node and in the log."""

    def __init__(self, node: str, node_id: str | None, total: int):
        self.node, self.node_id = node, node_id
        self._bar = comfy.utils.ProgressBar(total)
        self._done = 0

    def say(self, words: str) -> None:
        logger.info("%s: %s.", self.node, words)
        server: Any = getattr(getattr(sys.modules.get("server"), "PromptServer", None), "instance", None)
        if self.node_id is not None and hasattr(server, "send_progress_text"):
            server.send_progress_text(words, self.node_id)

    def at(self, part: int) -> None:
        """This much of the present part is done."""
        self._bar.update_absolute(self._done + part)

    def end(self, part: int) -> None:
        self._done += part
        self.at(0)


def record_all(
    node: str, model: ModelPatcher, schedule: Schedule, runs: Sequence[Run], store: Store, progress: Progress
) -> None:
    """Full precision into the store, but for what it holds already."""
    for i, run in enumerate(runs):
        if store.holds(run_name(run)):
            progress.end(schedule.steps)
        else:
            store.put(run_name(run), record_one(node, model, schedule, run, f"run {i + 1} of {len(runs)}", progress))


def record_one(
    node: str, model: ModelPatcher, schedule: Schedule, run: Run, which: str, progress: Progress
) -> Trajectory:
    progress.say(f"Full precision, {which}: recording")
    found = record(node, model, schedule, run, progress.at)
    progress.end(schedule.steps)
    return found


def run_name(run: Run) -> str:
    return f"run_{identity.digest(run.prompt, run.seed)}"


def store_for(full_key: str, channels: int, schedule: Schedule, runs: Sequence[Run]) -> Store:
    """Memory, or the temp folder for what is too large for it. Two tensors a call."""
    positions = schedule.latent.numel() // schedule.latent.shape[1]
    needed = 8 * positions * channels * schedule.steps * len(runs)
    return InMemory() if needed <= IN_MEMORY else InFolder(qdrift_folder.temporary_path(full_key))
