"""models/qdrift: where statistics lie, trajectories wait, and an interrupted calibration is taken up again."""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import count
from pathlib import Path

import folder_paths

from ..calibration.statistics import QDriftStatistics
from ..calibration.trajectories import HEADER

NAME = "qdrift"
TRAJECTORIES = "trajectories"
SUFFIX = ".safetensors"
RESERVED = {"con", "prn", "aux", "nul", *(f"{port}{i}" for port in ("com", "lpt") for i in range(10))}


def folder() -> Path:
    """The folder that calibrations are written to, made known to ComfyUI as one of its model folders."""
    if NAME not in folder_paths.folder_names_and_paths:
        folder_paths.add_model_folder_path(NAME, str(Path(folder_paths.models_dir) / NAME))
    folder_paths.folder_names_and_paths[NAME][1].add(SUFFIX)
    return Path(folder_paths.get_folder_paths(NAME)[0])


def choices(names: list[str], what: str, maker: str) -> list[str]:
    """For a list to choose from; where there is nothing yet, one entry that says what to do, as no list may be empty."""
    return names or [f"no {what} yet: run {maker}, then press R"]


def statistics_choices() -> list[str]:
    return choices(statistics_names(), "statistics", "Q-Drift Calibrate")


def trajectory_choices() -> list[str]:
    return choices(trajectory_names(), "trajectory", "Q-Drift Record Trajectory")


def statistics_names() -> list[str]:
    """The statistics in models/qdrift, as ComfyUI's loaders list files."""
    folder()
    names = folder_paths.get_filename_list(NAME)
    return [name for name in names if TRAJECTORIES not in Path(name).parts[:-1]]


def statistics_path(node: str, name: str) -> Path:
    folder()
    path = folder_paths.get_full_path(NAME, name)
    if path is None:
        if not statistics_names():
            raise ValueError(
                f"{node}: models/qdrift holds no statistics yet; run Q-Drift Calibrate or put a statistics file there, then "
                "press R and choose it in 'file'."
            )
        raise ValueError(f"{node}: models/qdrift holds no {name!r:.200}; choose another file, or calibrate first.")
    return Path(path)


def trajectory_names() -> list[str]:
    home = folder() / TRAJECTORIES
    return sorted(path.parent.name for path in home.glob(f"*/{HEADER}")) if home.is_dir() else []


def trajectory_path(node: str, name: str) -> Path:
    names = trajectory_names()
    if not names:
        raise ValueError(
            f"{node}: models/qdrift/trajectories holds nothing yet; run Q-Drift Record Trajectory, then press R and choose "
            "its folder in 'trajectory'."
        )
    if name not in names:
        raise ValueError(f"{node}: models/qdrift/trajectories holds no {name!r:.200}; record a trajectory first.")
    return folder() / TRAJECTORIES / name


def resume_path(key: str) -> Path:
    return folder() / ".resume" / key


def temporary_path(key: str) -> Path:
    return Path(folder_paths.get_temp_directory()) / "gimbal_qdrift" / key


def clean(name: str, instead: str) -> str:
    """A file name without folders, endings or letters that a file system may refuse; `instead` where nothing is left."""
    words = re.sub(r"[^\w\-+. ]+", "_", name.strip().removesuffix(SUFFIX), flags=re.ASCII)
    words = words[:100].strip(" ._")
    if not words:
        return instead
    return f"_{words}" if words.partition(".")[0].lower() in RESERVED else words


def free(home: Path, name: str, ending: str, ours: Callable[[Path], bool]) -> Path:
    """home/name, numbered until nothing is there, or only what these same inputs have written."""
    for number in count(1):
        path = home / f"{name}{'' if number == 1 else f'_{number}'}{ending}"
        if not path.exists() or ours(path):
            return path
    raise AssertionError  # count has no end


def save(statistics: QDriftStatistics, filename: str) -> Path:
    """Write to models/qdrift, over an older file only if it tells of the very same runs and of no more. The path.

    Raises:
        OSError: the folder is full or closed to us.
    """
    home = folder()
    home.mkdir(parents=True, exist_ok=True)
    path = free(home, clean(filename, "calibration"), SUFFIX, lambda path: _same_runs(path, statistics))
    statistics.save(path)
    return path


def _same_runs(path: Path, statistics: QDriftStatistics) -> bool:
    try:
        there = QDriftStatistics.load(path)
    except (ValueError, OSError):
        return False
    if any(
        getattr(there, part) is not None and getattr(statistics, part) is None for part in ("state_sigma", "trial")
    ):
        return False
    theirs, ours = there.provenance.to_metadata(), statistics.provenance.to_metadata()
    return {**theirs, "date": ""} == {**ours, "date": ""}
