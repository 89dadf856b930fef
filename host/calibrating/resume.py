"""What an interrupted calibration left on disk: moments of runs, maps, trials. The same inputs take them up again."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from ...calibration import resume_parts
from ...calibration.collect import RunMoments
from ...calibration.trial import Tried
from ...core.run_means import RunMeans
from .. import identity, qdrift_folder
from .recording import run_name
from .sampling_runs import CalibrationRun

logger = logging.getLogger(__name__)
Part = TypeVar("Part")
Candidate = tuple[str, float]  # a correction and its strength


class Resume:
    """A folder of parts. Each `load` gives bit for bit what `save` got, or None where there is nothing to be used.

    Args:
        key: of all that the measured runs depend on but seed and prompt.
        fitted: a name for the runs that maps are found on, and for what is fitted.
    """

    def __init__(self, node: str, key: str, fitted: str):
        self.node, self.fitted = node, fitted
        self.folder = qdrift_folder.resume_path(key)

    def save_run(self, run: CalibrationRun, moments: RunMoments) -> None:
        moments.save(self._run(run))

    def load_run(self, run: CalibrationRun, channels: int, trim: float | None) -> RunMoments | None:
        try:
            return self._usable(lambda: RunMoments.load(self._run(run), channels, trim))
        except FileNotFoundError:
            return None

    def save_map(self, kind: str, scale: Tensor, shift: Tensor) -> None:
        resume_parts.save(self._map(kind), {"scale": scale.double(), "shift": shift.double()})

    def load_map(self, kind: str, steps: int, channels: int) -> tuple[Tensor, Tensor] | None:
        """scale and shift, (steps, channels) each."""
        return self._usable(lambda: resume_parts.load_map(self._map(kind), steps, channels))

    def save_error(self, run: CalibrationRun, number: int, error: float) -> None:
        """What a candidate of the precision plan leaves of a run's error."""
        resume_parts.save(
            self._error(run, number), {"error": torch.tensor([error], dtype=torch.float64, device="cpu")}
        )

    def load_error(self, run: CalibrationRun, number: int) -> float | None:
        return self._usable(lambda: resume_parts.load_error(self._error(run, number)))

    def save_layers(self, runs: RunMeans) -> None:
        tensors = {"count": torch.tensor([runs.count], dtype=torch.int64), "mean": runs.mean, "m2": runs.m2}
        resume_parts.save(self._layers(), tensors)

    def load_layers(self, shape: tuple[int, int]) -> RunMeans | None:
        """The layer correction's runs so far, of this shape."""
        return self._usable(lambda: resume_parts.load_layers(self._layers(), shape))

    def save_trial(self, run: CalibrationRun, candidate: Candidate, tried: Tried) -> None:
        resume_parts.save_tried(self._trial(run, candidate), tried)

    def load_trial(self, run: CalibrationRun, candidate: Candidate) -> Tried | None:
        """What a candidate gave on a held-out run."""
        return self._usable(lambda: resume_parts.load_tried(self._trial(run, candidate)))

    def tried(self, run: CalibrationRun, candidates: Sequence[Candidate]) -> bool:
        """Whether all candidates were tried on a held-out run."""
        return all(self.load_trial(run, candidate) is not None for candidate in candidates)

    def clear(self) -> None:
        """After the statistics are safe."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _usable(self, load: Callable[[], Part | None]) -> Part | None:
        """A damaged part is none: it is named in the log, and made again."""
        try:
            return load()
        except ValueError as error:
            logger.warning("%s: %s", self.node, error)
            return None

    def _run(self, run: CalibrationRun) -> Path:
        return self.folder / f"{run_name(run)}.partial"

    def _map(self, kind: str) -> Path:
        return self.folder / f"{kind}_{self.fitted}.partial"

    def _layers(self) -> Path:
        return self.folder / f"layers_{self.fitted}.partial"

    def _error(self, run: CalibrationRun, number: int) -> Path:
        return self.folder / f"plan_{run_name(run)}_{number}.partial"

    def _trial(self, run: CalibrationRun, candidate: Candidate) -> Path:
        name, strength = candidate
        words = f"{name.replace(' ', '_')}_{strength:g}"
        return self.folder / f"trial_{self.fitted}_{run_name(run)}_{words}.partial"


def fitted_name(runs: Sequence[CalibrationRun], correction: str) -> str:
    return identity.digest([run_name(run) for run in runs], correction)
