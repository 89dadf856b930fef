"""Calibrations from few runs chosen out of many: by stress, by the least of it, or at random (Q-Drift's Table 3)."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from .formats import HEAVY
from .paired_sampler import PairedSampler
from .quantization import DRIFT, FULL, LAYERS, METHODS, MOMENTS, PLAIN, Bench, Make, QuantizedRow
from .stress import Stress
from .subjects import SETTINGS

KIND = "flow"
PART = f"subsets-{KIND}"
SETTING = SETTINGS[KIND][0]
SEEDS = 4
FORMATS = (HEAVY[0], HEAVY[2])
CORRECTIONS = (DRIFT, MOMENTS, LAYERS)
POOL = 20  # runs to choose from
SIZES = (1, 3, 5)
RANDOM, MOST, LEAST, ERROR = "at random", "largest deviation", "least deviation", "largest error"


def _at_random(stress: Stress, seed: int) -> Tensor:
    return torch.randperm(len(stress.error), generator=torch.Generator().manual_seed(1_000 + seed))


ORDERS: dict[str, Callable[[Stress, int], Tensor]] = {  # the pool's runs, the first ones to be taken first
    RANDOM: _at_random,
    MOST: lambda stress, seed: stress.deviation.argsort(descending=True),
    LEAST: lambda stress, seed: stress.deviation.argsort(),
    ERROR: lambda stress, seed: stress.error.argsort(descending=True),
}


def rows(kind: str) -> Iterator[QuantizedRow]:
    yield QuantizedRow(SETTING, FORMATS[0], FULL, METHODS[FULL])
    for form in FORMATS:
        yield QuantizedRow(SETTING, form, PLAIN, METHODS[PLAIN])
        for correction in CORRECTIONS:
            for order in ORDERS:
                for size in sizes(order):
                    yield QuantizedRow(SETTING, form, method(correction, size, order), make(correction, size, order))


def sizes(order: str) -> tuple[int, ...]:
    """Numbers of runs. The second measure of stress has the paper's number alone."""
    return SIZES[-1:] if order == ERROR else SIZES


def method(correction: str, size: int, order: str) -> str:
    return f"{correction}, {size} of {POOL} runs, {order}"


def make(correction: str, size: int, order: str) -> Make:
    def made(bench: Bench, sampler: PairedSampler) -> Tensor:
        chosen = ORDERS[order](sampler.stress(POOL), sampler.seed)[:size]
        return METHODS[correction](bench, sampler.calibrated_on(chosen, POOL))

    return made
