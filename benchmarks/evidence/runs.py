"""Making the runs: each result is written as soon as it is there, and what is written is not made again."""

from __future__ import annotations

import datetime
import hashlib
import json
import os
import platform
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch

from . import model
from .judge import Judge

DIGITS = 6
Row = TypeVar("Row")  # whatever has a name


@dataclass(frozen=True)
class GuidedRow:
    """One row of a table: a method in one setting. rule(seed) makes the method anew for a run."""

    name: str
    steps: int
    solver: str
    rule: Callable[[int], model.GuidanceMethod]


class Results:
    """The file of one part and seed: `about` says what everything in it was made with, `runs` is name -> measures."""

    def __init__(self, path: Path, about: dict) -> None:
        self.path, self.about, self.runs = path, about, {}
        self.differing: list[str] = []
        if path.exists():
            stored = json.loads(path.read_text(encoding="utf-8"))
            self.differing = [
                f"{key} {stored['about'][key]} instead of {about[key]}"
                for key in about
                if key not in ("date", "machine") and stored["about"][key] != about[key]
            ]
            self.runs = stored["runs"]

    def lacks(self, name: str) -> bool:
        """Whether this run is still to be made. ValueError if the file then held unlike runs."""
        if name in self.runs:
            return False
        if self.differing:
            raise ValueError(
                f"{self.path} lacks {name!r} and was made with {', '.join(self.differing)}; "
                "ask for the same, or give another --results folder."
            )
        return True

    def add(self, name: str, measures: dict[str, float]) -> None:
        self.runs[name] = {key: float(f"{value:.{DIGITS}g}") for key, value in measures.items()}
        partial = self.path.with_suffix(".partial")
        partial.write_text(_readable({"about": self.about, "runs": self.runs}), encoding="utf-8")
        partial.replace(self.path)


def stored_precision(folder: Path) -> str | None:
    found = load(folder, "samg")
    return found[0]["about"]["precision"] if found else None


def load(folder: Path, part: str) -> list[dict]:
    """Stored results, by seed."""
    files = sorted(folder.glob(f"{part}-seed*.json"), key=lambda path: int(path.stem.rpartition("seed")[2]))
    return [json.loads(path.read_text(encoding="utf-8")) for path in files]


def make(heading: str, rows: Iterable[Row], results: Results, measured: Callable[[Row], dict[str, float]]) -> None:
    """The rows that are lacking. heading: of what is printed of each."""
    for row in rows:
        if results.lacks(row.name):
            began = time.process_time()
            measures = measured(row)
            seconds = time.process_time() - began
            results.add(row.name, measures | {"seconds": seconds})
            print(f"{heading}: {row.name} ({seconds:.0f} s)", flush=True)


def guided(row: GuidedRow, start: model.GuidedSampler, judge: Judge) -> dict[str, float]:
    """Measures of the row's samples."""
    rule = row.rule(start.seed)
    latents = start.sample(row.steps, row.solver, rule)
    return judge.measures(latents, start.labels) | rule.measures()


def about(samples: int, seed: int, precision: str, weights: Path = model.recognise.train.OUTPUT) -> dict:
    import comfyui_version  # on the path once the network is built

    return {
        "samples": samples,
        "seed": seed,
        "precision": precision,
        "model": hashlib.sha256(weights.read_bytes()).hexdigest()[:16],
        "torch": torch.__version__,
        "comfyui": comfyui_version.__version__,
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d"),
        "machine": f"{os.cpu_count()} cores of {_processor()}, Python {platform.python_version()}",
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _readable(stored: dict) -> str:
    """JSON with one run a line, for diffs."""
    rows = ",\n".join(f"    {json.dumps(name)}: {json.dumps(run)}" for name, run in stored["runs"].items())
    return f'{{\n  "about": {json.dumps(stored["about"])},\n  "runs": {{\n{rows}\n  }}\n}}\n'
