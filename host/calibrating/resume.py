"""What an interrupted calibration left on disk: moments of runs, maps, trials. The same inputs take them up again."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from ...calibration import storage
from ...calibration.collect import RunMoments
from ...core.shapes import doubles
from .. import identity, qdrift_folder
from .recording import run_name
from .sampling_runs import Run

logger = logging.getLogger(__name__)


class Resume:
    """A folder of parts. Each `load` gives bit for bit what `save` got, or None where there is nothing to be used.

    Args:
        key: of all that the measured runs depend on but seed and prompt.
        fitted: a name for the runs that maps are found on, and for what is fitted.
    """

    def __init__(self, node: str, key: str, fitted: str):
        self.node, self.fitted = node, fitted
        self.folder = qdrift_folder.resume_path(key)

    def save_run(self, run: Run, moments: RunMoments) -> None:
        moments.save(self._run(run))

    def load_run(self, run: Run, channels: int, trim: float | None) -> RunMoments | None:
        try:
            return RunMoments.load(self._run(run), channels, trim)
        except FileNotFoundError:
            return None
        except ValueError as error:
            logger.warning("%s: %s Measuring that run again.", self.node, error)
            return None

    def save_map(self, kind: str, scale: Tensor, shift: Tensor) -> None:
        storage.save_part(self._map(kind), {"scale": scale, "shift": shift})

    def load_map(self, kind: str, steps: int, channels: int) -> tuple[Tensor, Tensor] | None:
        """scale and shift, (steps, channels) each."""
        found = storage.load_part(self._map(kind), {"scale": (steps, channels), "shift": (steps, channels)})
        return None if found is None else (found["scale"], found["shift"])

    def save_trial(self, run: Run, measures: Sequence[Sequence[float]]) -> None:
        storage.save_part(self._trial(run), {"measures": torch.stack([doubles(pair) for pair in measures])})

    def load_trial(self, run: Run, candidates: int) -> list[list[float]] | None:
        """What each candidate gave on a held-out run, (candidates, 2)."""
        found = storage.load_part(self._trial(run), {"measures": (candidates, 2)})
        return None if found is None else found["measures"].tolist()

    def clear(self) -> None:
        """After the statistics are safe."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _run(self, run: Run) -> Path:
        return self.folder / f"{run_name(run)}.partial"

    def _map(self, kind: str) -> Path:
        return self.folder / f"{kind}_{self.fitted}.partial"

    def _trial(self, run: Run) -> Path:
        return self.folder / f"trial_{self.fitted}_{run_name(run)}.partial"


def fitted_name(runs: Sequence[Run], correction: str) -> str:
    return identity.digest([run_name(run) for run in runs], correction)
