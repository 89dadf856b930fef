"""What a run's stages saw, kept small, so that a preview node can show it after the sampler.

A stage owns an `Observer`. While a run lasts its maps gather in a `MapRecorder` of that run; when it has ended they become a
`RunMaps`, which also knows the samples that came out, so that a preview shows the run that made its LATENT and no other.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ...core.schedule import StepCounter

RUNS = 4  # kept by an observer: a model often feeds several samplers
MAX_CALLS = 64  # kept of a run; of longer ones every second, every fourth, ...
SAMPLES = 4  # of a batch
SIDE = 96  # largest side of a map that is kept


@dataclass(frozen=True)
class CallMaps:
    """One model call."""

    step: int  # of the sampler's schedule
    sigma: float
    maps: dict[str, Tensor]  # name -> (samples, h, w), float32 on the CPU


@dataclass(frozen=True)
class RunMaps:
    """What one stage saw of one run."""

    made: bytes  # tells the samples that the run made
    calls: tuple[CallMaps, ...]


class Observer:
    """The last runs that a stage took part in."""

    def __init__(self) -> None:
        self._runs: deque[RunMaps] = deque(maxlen=RUNS)

    def keep(self, seen: RunMaps) -> None:
        self._runs.append(seen)

    def run_that_made(self, samples: Tensor) -> tuple[RunMaps | None, bool]:
        """The latest run that made these samples and True; else the latest of all, or None, and False."""
        made = digest(samples)
        for seen in reversed(self._runs):
            if seen.made == made:
                return seen, True
        return (self._runs[-1] if self._runs else None), False


class MapRecorder:
    """The maps of the run that is going on. They stay on their device: nothing waits for them before the run's end."""

    def __init__(self, sigmas: Sequence[float]) -> None:
        self._sigmas = sigmas
        self._calls: list[tuple[Tensor, int, dict[str, Tensor]]] = []
        self._every = 1
        self._count = 0

    def __bool__(self) -> bool:
        return bool(self._calls)

    def add(self, sigma: Tensor, begun: int, **maps: Tensor) -> None:
        """Keep maps (B, *spatial) of the call at this noise level, after so many of the sampler's callbacks: the first
        samples, of a video the middle frame."""
        if self._count % self._every == 0:
            self._calls.append((sigma.flatten()[:1], begun, {name: _small(one) for name, one in maps.items()}))
        self._count += 1
        if len(self._calls) > MAX_CALLS:
            del self._calls[1::2]
            self._every *= 2

    def finish(self, samples: Tensor) -> RunMaps:
        calls, counter = [], StepCounter(self._sigmas)
        for level, begun, maps in self._calls:
            sigma = float(level)
            calls.append(CallMaps(counter.step(sigma, begun), sigma, {name: one.cpu() for name, one in maps.items()}))
        return RunMaps(digest(samples), tuple(calls))


def digest(samples: Tensor) -> bytes:
    values = samples.detach().to("cpu", torch.float32).contiguous()
    return hashlib.blake2b(values.numpy().tobytes(), digest_size=16).digest()


def _small(one: Tensor) -> Tensor:
    one = one[:SAMPLES].detach().float()
    if one.ndim == 4:
        one = one[:, one.shape[1] // 2]
    height, width = one.shape[-2:]
    if max(height, width) > SIDE:
        shrink = SIDE / max(height, width)
        return F.adaptive_avg_pool2d(one, (max(1, round(height * shrink)), max(1, round(width * shrink))))
    return one.clone()
