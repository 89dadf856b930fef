"""What the benchmarks of speed share: their options, and the times of several ways to do one thing."""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterable, Mapping

import torch


def options(description: str, repetitions: int, **hidden: Iterable[str]) -> argparse.Namespace:
    """Of the command line, with the number of threads set. hidden: choices of options that are not for people."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", type=torch.device, default="cpu")
    parser.add_argument("--repetitions", type=int, default=repetitions)
    for name, choices in hidden.items():
        parser.add_argument(f"--{name}", choices=choices, help=argparse.SUPPRESS)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    return given


def print_head(given: argparse.Namespace, *columns: str) -> None:
    print(f"torch {torch.__version__}, {given.device}, {given.threads} threads, medians of {given.repetitions}\n")
    print_row(*columns)
    print(f"|{'---|' * len(columns)}")


def print_row(*cells: object) -> None:
    print(f"| {' | '.join(map(str, cells))} |", flush=True)


def size(shape: Iterable[int]) -> str:
    return "x".join(map(str, shape))


def medians(calls: Mapping[str, Callable[[], object]], repetitions: int, device: torch.device) -> dict[str, float]:
    """Seconds by name. The calls take turns, so that other load on the machine meets all alike. Each timed call follows
    an untimed one of its own: none pays for memory that another has given back to the system, and all start warm."""
    # Until a block this large has been freed, glibc asks the system for every large block anew, as it does not in a
    # process that has run a model; then page faults would be timed.
    torch.ones(7 << 20)
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repetitions):
        for name, call in calls.items():
            call()
            times[name].append(_seconds(call, device))
    return {name: statistics.median(values) for name, values in times.items()}


def _seconds(call: Callable[[], object], device: torch.device) -> float:
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda _: None
    wait(device)
    start = time.perf_counter()
    result = call()
    wait(device)
    seconds = time.perf_counter() - start
    del result
    return seconds
