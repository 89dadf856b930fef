"""Full-precision runs on their way into a store, and the one bar that shows how far all of a calibration is."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence

import comfy.utils
from comfy.model_patcher import ModelPatcher

from ...calibration.text import printable
from ...calibration.trajectories import Trajectory, TrajectoryStore
from .. import identity, qdrift_folder
from ..messages import NodeId, on_node
from .layer_means import PlaceWatch
from .sampling_runs import CalibrationRun, Schedule, record

logger = logging.getLogger(__name__)


class Progress:
    """One bar over everything, and words on the node and in the log."""

    def __init__(self, node: str, node_id: str | None, total: int):
        self.node, self.node_id, self.total = node, node_id, total
        self._bar = comfy.utils.ProgressBar(total)
        self._done = 0
        self._worked, self._since = 0, time.monotonic()

    def say(self, words: str) -> None:
        """Words for the node and the log, and the time left once a part is done that tells how long parts take."""
        words = printable(words, None)
        left = self.total - self._done
        if self._worked and left > 0:
            words = f"{words}, {duration(left * (time.monotonic() - self._since) / self._worked)} left"
        logger.info("%s: %s.", self.node, words)
        on_node(NodeId(self.node_id), words)

    def end_with(self, words: str) -> None:
        """What stays on the node. The log has it already."""
        on_node(NodeId(self.node_id), words)

    def grow(self, parts: int) -> None:
        """More is to be done than was known."""
        self.total += parts
        self._bar.total = self.total

    def at(self, part: int) -> None:
        """This much of the present part is done."""
        self._bar.update_absolute(self._done + part)

    def end(self, part: int) -> None:
        """A part is done."""
        self._worked += part
        self.skip(part)

    def skip(self, part: int) -> None:
        """A part was done before."""
        self._done += part
        self.at(0)


def duration(seconds: float) -> str:
    """About so long: "40 s", "12 min", "3 h 20 min"."""
    if seconds < 100:
        return f"about {max(1, round(seconds))} s"
    minutes = round(seconds / 60)
    return f"about {minutes} min" if minutes < 100 else f"about {minutes // 60} h {minutes % 60} min"


def record_all(
    node: str,
    model: ModelPatcher,
    schedule: Schedule,
    runs: Sequence[CalibrationRun],
    store: TrajectoryStore,
    progress: Progress,
    watch: PlaceWatch | None = None,
) -> None:
    """Full precision into the store, but for what it holds already. watch: the means at the network's places, too."""
    for i, run in enumerate(runs):
        if store.holds(run_name(run)) and (watch is None or store.holds_means(run_name(run))):
            progress.skip(schedule.steps)
        else:
            which = f"run {i + 1} of {len(runs)}"
            store.put(run_name(run), record_one(node, model, schedule, run, which, progress, watch))


def record_one(
    node: str,
    model: ModelPatcher,
    schedule: Schedule,
    run: CalibrationRun,
    which: str,
    progress: Progress,
    watch: PlaceWatch | None = None,
) -> Trajectory:
    progress.say(f"Full precision, {which}: recording")
    found = record(node, model, schedule, run, progress.at, watch)
    progress.end(schedule.steps)
    return found


def run_name(run: CalibrationRun) -> str:
    return f"run_{identity.digest(run.prompt, run.seed)}"


def store_for(
    node: str, full_key: str, channels: int, schedule: Schedule, runs: Sequence[CalibrationRun], widths: int = 0
) -> TrajectoryStore:
    """Where full precision's runs wait until the statistics are written: on disk, so that Cancel loses one at most.

    Args:
        widths: channels at the places whose means are kept, together.
    Raises:
        ValueError: the folder cannot be written to, or its disk has no room for these runs.
    """
    qdrift_folder.tidy_recordings(full_key)
    store = TrajectoryStore(qdrift_folder.recording_path(full_key), qdrift_folder.PART)
    positions = schedule.latent.numel() // schedule.latent.shape[1]
    # Two float32 tensors a call, a call a step at least; a float32 mean a step and branch.
    each = 8 * (positions * channels + widths) * schedule.steps
    qdrift_folder.check_room(node, each * sum(not store.holds(run_name(run)) for run in runs))
    return store
