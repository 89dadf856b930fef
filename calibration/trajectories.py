"""Recorded trajectories: what a full-precision run called its model with, and what came back. On disk."""

from __future__ import annotations

import contextlib
import logging
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from . import place_means, storage
from .place_means import PlaceMeans
from .text import printable
from .validate import MOST_VALUE, range_fault

logger = logging.getLogger(__name__)
FORMAT = "gimbal.qdrift.trajectory/2"
REMEDY = "; record it again"
CALL = ("x", "sigma", "denoised")
FLOATS = ("F64", "F32", "F16", "BF16")


@dataclass(frozen=True, eq=False)
class ModelCall:
    """One model call, on the CPU."""

    x: Tensor  # (B, C, *spatial), the state
    sigma: Tensor  # (B,)
    denoised: Tensor  # (B, C, *spatial), the guided prediction of x0


@dataclass(frozen=True, eq=False)
class Trajectory:
    """One run, on the CPU."""

    calls: Sequence[ModelCall]
    final: Tensor  # (B, C, *spatial), the state that its last step ended in
    means: PlaceMeans | None = None  # at the network's places; kept in a file of its own


class TrajectoryStore:
    """A safetensors file a run. What is there already, from before a Cancel or a crash, is there whole.

    Args:
        folder: where the files are.
        ending: of their names; another one than .safetensors keeps them out of ComfyUI's lists.
    """

    def __init__(self, folder: Path, ending: str = ".safetensors"):
        self.folder, self.ending = folder, ending
        self._sound: set[str] = set()  # runs whose checksums were found to be right

    def put(self, run: str, trajectory: Trajectory) -> None:
        """OSError as the system reports it."""
        if trajectory.means is not None:  # first, so that a run that is there has them
            self.put_means(run, trajectory.means)
        self.folder.mkdir(parents=True, exist_ok=True)
        tensors = {name: torch.stack([getattr(call, name) for call in trajectory.calls]) for name in CALL}
        storage.write(self._path(run), {**tensors, "final": trajectory.final}, {"format": FORMAT})

    def holds(self, run: str) -> bool:
        """Whether it is there and can be used; a damaged file counts as none, and is named in the log."""
        if not self._path(run).exists():
            return False
        try:
            with self._opened(run):
                return True
        except ValueError as error:
            logger.warning("%s", error)
            return False

    def put_means(self, run: str, means: PlaceMeans) -> None:
        """A run's means alone. OSError as the system reports it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        place_means.save(self._means(run), means)

    def holds_means(self, run: str) -> bool:
        """As `holds`, of a run's means."""
        try:
            return self.means(run) is not None
        except ValueError as error:
            logger.warning("%s", error)
            return False

    def means(self, run: str) -> PlaceMeans | None:
        """None if they were not recorded. ValueError if their file cannot be used."""
        return place_means.load(self._means(run))

    def tidy(self) -> None:
        """Remove what a process that was killed while it wrote has left."""
        for draft in self.folder.glob(".*.tmp"):
            draft.unlink(missing_ok=True)

    def calls(self, run: str) -> Iterator[ModelCall]:
        """One after the other, so that one call's tensors are in memory. ValueError if the file cannot be used."""
        with self._opened(run) as file:
            for parts in zip(*(file.rows(name) for name in CALL), strict=True):
                for name, part in zip(CALL, parts, strict=True):
                    self._check(run, name, part)
                yield ModelCall(*parts)

    def final(self, run: str) -> Tensor:
        """ValueError if the file cannot be used."""
        with self._opened(run) as file:
            found = file.tensor("final")
            self._check(run, "final", found)
            return found

    def length(self, run: str) -> int:
        """Calls. ValueError if the file cannot be used."""
        with self._opened(run) as file:
            return file.layout["x"][1][0]

    def clear(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    def _path(self, run: str) -> Path:
        return self.folder / f"{run}{self.ending}"

    def _means(self, run: str) -> Path:
        return self.folder / f"{run}.means{self.ending}"

    @contextlib.contextmanager
    def _opened(self, run: str) -> Iterator[storage.Opened]:
        with opened(self._path(run)) as file:
            fault = _run_fault(file.layout)
            if fault:
                raise ValueError(f"{printable(self._path(run), None)}: {fault}{REMEDY}.")
            if run not in self._sound:
                verify(self._path(run), file)
                self._sound.add(run)
            yield file

    def _check(self, run: str, name: str, values: Tensor) -> None:
        fault = range_fault(name, values, 0.0 if name == "sigma" else -MOST_VALUE, MOST_VALUE)
        if fault:
            raise ValueError(f"{printable(self._path(run), None)}: {fault}{REMEDY}.")


def _run_fault(layout: Mapping[str, tuple[str, tuple[int, ...]]]) -> str | None:
    """What is wrong with a run's dtypes and shapes, or None."""
    for name in (*CALL, "final"):
        if name not in layout:
            return f"tensor {name} is missing"
        if layout[name][0] not in FLOATS:
            return f"tensor {name} has dtype {layout[name][0]}, not one of {', '.join(FLOATS)}"
    x, sigma, denoised, final = (layout[name][1] for name in (*CALL, "final"))
    if len(x) < 3 or 0 in x:
        return f"tensor x has shape {x} instead of (calls, batch, channels, ...)"
    if denoised != x or sigma != x[:2] or final != x[1:]:
        return f"tensors of x {x}, sigma {sigma}, denoised {denoised} and final {final} do not fit together"
    return None


@contextlib.contextmanager
def opened(path: Path) -> Iterator[storage.Opened]:
    """A file of this version, or a ValueError that names it."""
    if not path.exists():
        raise ValueError(f"{printable(path, None)} is missing; record the trajectory again.")
    with contextlib.ExitStack() as stack:
        try:
            file = stack.enter_context(storage.opened(path))
            if file.metadata.get("format") != FORMAT:
                raise ValueError(f"not a trajectory of this version ({file.metadata.get('format')!r:.80})")
        except ValueError as error:
            raise ValueError(f"{printable(path, None)}: {error}{REMEDY}.") from error
        yield file


def verify(path: Path, file: storage.Opened) -> None:
    try:
        file.verify(required=False)  # earlier versions wrote none
    except ValueError as error:
        raise ValueError(f"{printable(path, None)}: {error}{REMEDY}.") from error
