"""Times of several ways to do one thing, as medians of one run in which they take turns."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping

import torch


def medians(calls: Mapping[str, Callable[[], object]], repetitions: int, device: str = "cpu") -> dict[str, float]:
    """Seconds by name. What else the machine does hits all alike, as they take turns. Each timed call follows an untimed
    one of its own: none pays for memory that another has given back to the system, and all start warm."""
    # Until a block this large has been freed, glibc asks the system for every large block anew, as it does not in a
    # process that has run a model; then page faults would be timed.
    torch.ones(7 << 20)
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repetitions):
        for name, call in calls.items():
            call()
            times[name].append(_seconds(call, torch.device(device)))
    return {name: statistics.median(values) for name, values in times.items()}


def _seconds(call: Callable[[], object], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    result = call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    taken = time.perf_counter() - start
    del result
    return taken
