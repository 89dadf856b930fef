"""Recorded trajectories: what a full-precision run called its model with, and what came back. In memory or on disk."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from safetensors import safe_open
from torch import Tensor

from . import storage

FORMAT = "gimbal.qdrift.trajectory/2"
HEADER = "trajectory.safetensors"
CALL = ("x", "sigma", "denoised")


@dataclass(frozen=True, eq=False)
class Call:
    """One model call, on the CPU."""

    x: Tensor  # (B, C, *spatial), the state
    sigma: Tensor  # (B,)
    denoised: Tensor  # (B, C, *spatial), the guided prediction of x0


@dataclass(frozen=True, eq=False)
class Trajectory:
    """One run, on the CPU."""

    calls: Sequence[Call]
    final: Tensor  # (B, C, *spatial), the state that its last step ended in


class Store(Protocol):
    """Where trajectories wait."""

    def put(self, run: str, trajectory: Trajectory) -> None: ...
    def holds(self, run: str) -> bool: ...
    def calls(self, run: str) -> Iterator[Call]: ...
    def final(self, run: str) -> Tensor: ...
    def length(self, run: str) -> int: ...
    def clear(self) -> None: ...


class InMemory:
    def __init__(self) -> None:
        self._runs: dict[str, Trajectory] = {}

    def put(self, run: str, trajectory: Trajectory) -> None:
        self._runs[run] = trajectory

    def holds(self, run: str) -> bool:
        return run in self._runs

    def calls(self, run: str) -> Iterator[Call]:
        return iter(self._runs[run].calls)

    def final(self, run: str) -> Tensor:
        return self._runs[run].final

    def length(self, run: str) -> int:
        return len(self._runs[run].calls)

    def clear(self) -> None:
        self._runs.clear()


class InFolder:
    """A safetensors file a run. What is there already, from before a Cancel or a crash, is there whole."""

    def __init__(self, folder: Path):
        self.folder = folder

    def put(self, run: str, trajectory: Trajectory) -> None:
        tensors = {name: torch.stack([getattr(call, name) for call in trajectory.calls]) for name in CALL}
        storage.write(self._path(run), {**tensors, "final": trajectory.final}, {"format": FORMAT})

    def holds(self, run: str) -> bool:
        return self._path(run).is_file()

    def tidy(self) -> None:
        """Remove what a process that was killed while it wrote has left."""
        storage.tidy(self.folder)

    def calls(self, run: str) -> Iterator[Call]:
        """One after the other, so that one call's tensors are in memory. ValueError if the file cannot be used."""
        with _opened(self._path(run)) as file:
            parts = {name: file.get_slice(name) for name in CALL}
            for i in range(parts["x"].get_shape()[0]):
                # By a range: safetensors before 0.4.4 takes no number.
                yield Call(**{name: part[i : i + 1][0].clone() for name, part in parts.items()})

    def final(self, run: str) -> Tensor:
        """ValueError if the file cannot be used."""
        with _opened(self._path(run)) as file:
            return cast(Tensor, file.get_tensor("final")).clone()

    def length(self, run: str) -> int:
        with _opened(self._path(run)) as file:
            return int(file.get_slice("x").get_shape()[0])

    def clear(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    def _path(self, run: str) -> Path:
        return self.folder / f"{run}.safetensors"


def _opened(path: Path) -> AbstractContextManager[safe_open]:
    """A file of a trajectory's folder. ValueError if it cannot be used."""
    return storage.opened(path, FORMAT, () if path.name == HEADER else (*CALL, "final"), "trajectory")


def write_header(folder: Path, settings: Mapping[str, object], tensors: dict[str, Tensor]) -> None:
    """What all runs of a recorded trajectory have in common. OSError as the system reports it."""
    storage.write(folder / HEADER, tensors, {"format": FORMAT, "settings": json.dumps(settings)})


def read_header(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Settings and tensors as written. ValueError if the folder holds no such thing."""
    with _opened(folder / HEADER) as file:
        try:
            settings = json.loads(file.metadata().get("settings", ""))
        except json.JSONDecodeError as error:
            raise ValueError(f"{folder}: its settings cannot be read ({error}); record it again.") from error
        return settings, {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
