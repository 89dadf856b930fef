"""models/qdrift: where statistics lie, trajectories wait, and an interrupted calibration is taken up again."""

from __future__ import annotations

import os
import re
import shutil
import time
import uuid
from collections.abc import Callable
from itertools import count
from pathlib import Path

import folder_paths

from ..calibration.statistics import QDriftStatistics
from ..calibration.storage import name_fault
from ..calibration.text import printable
from ..calibration.trajectory_header import HEADER

NAME = "qdrift"
TRAJECTORIES = "trajectories"
MOST_SEARCHED = 50  # files, each read whole
SUFFIX, PART = ".safetensors", ".partial"  # the second keeps what waits for a resume out of ComfyUI's lists
KEPT_BYTES, KEPT_SECONDS = 8 * 2**30, 24 * 3600  # of other calibrations' full-precision runs
RESERVED = {"con", "prn", "aux", "nul", *(f"{port}{i}" for port in ("com", "lpt") for i in range(10))}


def folder() -> Path:
    """The folder that calibrations are written to, made known to ComfyUI as one of its model folders."""
    if NAME not in folder_paths.folder_names_and_paths:
        folder_paths.add_model_folder_path(NAME, str(Path(folder_paths.models_dir) / NAME))
    folder_paths.folder_names_and_paths[NAME][1].add(SUFFIX)
    return Path(folder_paths.get_folder_paths(NAME)[0])


def choices(names: list[str], first: str, maker: str) -> list[str]:
    """For a list to choose from; where there is nothing yet, one entry that says what to do, as no list may be empty. A node
    shows about 16 letters of it, so these say the most."""
    return names or [f"{first} first: run {maker}, then press R"]


def statistics_choices() -> list[str]:
    return choices(statistics_names(), "calibrate", "Q-Drift Calibrate")


def trajectory_choices() -> list[str]:
    return choices(trajectory_names(), "record", "Q-Drift Record Trajectory")


def statistics_names() -> list[str]:
    """The statistics in models/qdrift, as ComfyUI's loaders list files."""
    folder()
    names = folder_paths.get_filename_list(NAME)
    return [name for name in names if TRAJECTORIES not in Path(name).parts[:-1]]


def statistics_path(node: str, name: str) -> Path:
    folder()
    path = folder_paths.get_full_path(NAME, name) if isinstance(name, str) else None
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


def recording_path(key: str) -> Path:
    """Where full precision's runs of an unfinished calibration wait."""
    return folder() / ".resume" / f"full_{key}"


def tidy_recordings(key: str) -> None:
    """Remove what cancelled calibrations have left, the oldest first, until no more than KEPT_BYTES are kept.

    What `key` names stays, and so does what was written to within a day: it may be another process's.
    """
    found = []
    for home in (folder() / ".resume").glob("full_*"):
        sizes = [(file.stat().st_mtime, file.stat().st_size) for file in home.iterdir() if file.is_file()]
        found.append((max((at for at, _ in sizes), default=0.0), sum(size for _, size in sizes), home))
    total = sum(size for _, size, _ in found)
    for at, size, home in sorted(found):
        if total > KEPT_BYTES and home != recording_path(key) and time.time() - at > KEPT_SECONDS:
            shutil.rmtree(home, ignore_errors=True)
            total -= size


def check_room(node: str, needed: int = 0) -> None:
    """ValueError unless models/qdrift can be written to and its disk has so many bytes left: asked before hours of work."""
    home = folder()
    fault = name_fault(home)
    if fault:
        raise ValueError(f"{node}: {printable(home, None)} cannot be used: {fault}.")
    try:
        for place in (home, home / ".resume"):
            place.mkdir(parents=True, exist_ok=True)
            probe = place / f".{uuid.uuid4().hex}.tmp"
            probe.write_bytes(b"gimbal")
            probe.unlink()
        free = shutil.disk_usage(home).free
    except OSError as error:
        raise ValueError(
            f"{node}: {printable(home, None)} cannot be written to ({printable(error)}); give ComfyUI the right to write there, or "
            "name another folder for qdrift in extra_model_paths.yaml."
        ) from error
    if free < needed:
        raise ValueError(
            f"{node}: {printable(home, None)} has {free / 2**30:.1f} GiB left, and full precision's runs need at least "
            f"{needed / 2**30:.1f}; free some space, or take fewer runs, fewer steps or a smaller latent."
        )


def clean(name: str, instead: str) -> str:
    """A file name without folders, endings or letters that a file system may refuse; `instead` where nothing is left."""
    words = re.sub(r"[^\w\-+. ]+", "_", name.strip().removesuffix(SUFFIX), flags=re.ASCII)
    words = words[:100].strip(" ._")
    if not words:
        return instead
    return f"_{words}" if words.partition(".")[0].lower() in RESERVED else words


def claimed(
    home: Path, name: str, ending: str, ours: Callable[[Path], bool], make: Callable[[Path, bool], None]
) -> Path:
    """home/name, numbered until nothing is there, or only what these same inputs have written.

    Args:
        ours: whether what is there was written for the same inputs.
        make: writes to a path, over what is there if the second argument is True. If it is False and another process has
            taken the name meanwhile it raises FileExistsError, and the next number is tried.
    """
    for number in count(1):
        path = home / f"{name}{'' if number == 1 else f'_{number}'}{ending}"
        there = os.path.lexists(path)
        if there and not ours(path):
            continue
        try:
            make(path, there)
        except FileExistsError:
            continue
        return path
    raise AssertionError  # count has no end


def save(statistics: QDriftStatistics, filename: str) -> Path:
    """Write to models/qdrift, over an older file only if it tells of the very same runs and of no more. The path.

    Raises:
        OSError: the folder is full or closed to us.
    """
    home = folder()
    home.mkdir(parents=True, exist_ok=True)
    name = clean(filename, "calibration")
    return claimed(home, name, SUFFIX, lambda path: _same_runs(path, statistics), statistics.save)


def saved_as(statistics: QDriftStatistics) -> Path | None:
    """The file in models/qdrift that tells of the same runs, the newest of several; None if there is none."""
    paths = [Path(path) for name in statistics_names() if (path := folder_paths.get_full_path(NAME, name))]
    newest = sorted(paths, key=lambda path: path.stat().st_mtime, reverse=True)[:MOST_SEARCHED]
    return next((path for path in newest if _same_runs(path, statistics)), None)


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
