"""How `dev.py test` calls pytest: in several processes, and the part that depends on the CPU's kernels on lesser ones too."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence

from . import environment
from .paths import ROOT

MOST_WORKERS = 4  # each takes about 1 GB, and a ComfyUI server another
# What an older CPU computes with: torch's own kernels without vector instructions, and oneDNN's without AVX-512.
LESSER_KERNELS = {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "AVX2"}
# The debugger needs the terminal, and one test does not need several processes.
_IN_PROCESS = ("--pdb", "--trace", "-s", "--capture=no")


def run(options: Sequence[str], workers: str | None, rest: Sequence[str], twice: bool = False) -> int:
    """Run pytest; its exit code, which is 5 if there was no test to run.

    twice: before that, run what is marked `numerics` on LESSER_KERNELS. The summary of all tests stays the last line, and
    a failure of either run is the exit code.
    """
    command = ["-m", "pytest", *options, *parallel(workers, rest)]
    before = 0
    if twice:
        print("dev.py: what depends on the CPU's kernels, on those of an older CPU ...", flush=True)
        lesser = {**os.environ, **LESSER_KERNELS}
        before = environment.run([*command, "-m", "numerics"], cwd=ROOT, env=lesser)
        if before:
            print(f"dev.py: that failed (exit code {before}), so this command will; all tests follow.", flush=True)
    return environment.run([*command, *rest], cwd=ROOT) or before


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def parallel(workers: str | None, rest: Sequence[str]) -> list[str]:
    """pytest-xdist's options.

    workers: what `-n` said; None: a process for each core, at most MOST_WORKERS, and none for a debugger, for tests named
    with `::`, or where PYTEST_ADDOPTS chooses. rest: what is passed on to pytest; empty if it does without pytest-xdist.
    """
    given = [*shlex.split(os.environ.get("PYTEST_ADDOPTS", "")), *rest]
    if "no:xdist" in given or "-pno:xdist" in given:
        return []
    if workers is None:
        if any(part.startswith(("-n", "--numprocesses")) for part in given):
            return []
        alone = any(part in _IN_PROCESS or "::" in part for part in given)
        workers = "0" if alone else str(min(cores(), MOST_WORKERS))
    # tests/conftest.py makes the groups, and puts them in the order in which they should start.
    return ["-n", workers, "--dist", "loadgroup", "--no-loadscope-reorder"]
