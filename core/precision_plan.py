"""Where a quantized network is to run with unrounded activations (METHODS.md 4.6).

Formats that round activations can run any step and any layer without that, with slower products. A plan says which; it is
written by hand ("first 3 steps"), or chosen by what each step and layer was measured to gain under a budget.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean, stdev
from typing import Any

SLACK = 1e-9  # of a budget that is met exactly
TINY = 1e-30  # keeps 0/0 out
MOST_RANGES = 10  # of steps, that are measured one by one
SMALLEST_GROUP = 1 / 12  # of the multiply-adds: smaller budgets take groups of their own size


@dataclass(frozen=True)
class Exemption:
    """A range of noise levels in which some layers see unrounded activations.

    Attributes:
        sigma_start, sigma_end: acts at sigma_start >= sigma > sigma_end. Infinite and 0: at every level.
        layers: names of modules; None: all that the format rounds.
    """

    sigma_start: float = math.inf
    sigma_end: float = 0.0
    layers: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if not self.sigma_start > self.sigma_end >= 0.0:
            raise ValueError(
                f"Exemption: from sigma {self.sigma_start} to {self.sigma_end}; noise levels must fall, to 0 at most."
            )
        if self.layers is not None and not self.layers:
            raise ValueError("Exemption: layers is empty; name some, or pass None for all of them.")

    def covers(self, sigma: float, layer: str) -> bool:
        return self.sigma_start >= sigma > self.sigma_end and (self.layers is None or layer in self.layers)


@dataclass(frozen=True)
class PrecisionPlan:
    """Exemptions that act together; none: the format as it is."""

    exemptions: tuple[Exemption, ...] = ()

    def unrounded(self, sigma: float, layers: Iterable[str]) -> frozenset[str]:
        """Of the layers that the format rounds, those that see unrounded activations at a noise level."""
        return frozenset(layer for layer in layers if any(each.covers(sigma, layer) for each in self.exemptions))

    def acts_at(self, sigma: float) -> bool:
        """Whether any layer is exempt at a noise level."""
        return any(each.sigma_start >= sigma > each.sigma_end for each in self.exemptions)

    def share(self, sigmas: Sequence[float], multiply_adds: Mapping[str, int]) -> float:
        """The share of a run's multiply-adds in rounded layers that the plan makes unrounded, 0 to 1.

        Args:
            sigmas: noise levels of the network's calls. multiply_adds: of each rounded layer in one call.
        Raises:
            ValueError: there is nothing to share.
        """
        total = len(sigmas) * sum(multiply_adds.values())
        if total <= 0:
            raise ValueError(
                f"PrecisionPlan.share: {len(sigmas)} calls of {len(multiply_adds)} layers; pass some of each."
            )
        spent = sum(multiply_adds[layer] for sigma in sigmas for layer in self.unrounded(sigma, multiply_adds))
        return spent / total

    def to_list(self) -> list[dict[str, Any]]:
        """As JSON takes it; an infinite sigma_start is None."""
        return [
            {
                "sigma_start": None if math.isinf(each.sigma_start) else each.sigma_start,
                "sigma_end": each.sigma_end,
                "layers": None if each.layers is None else list(each.layers),
            }
            for each in self.exemptions
        ]

    @classmethod
    def from_list(cls, listed: Sequence[Mapping[str, Any]]) -> PrecisionPlan:
        """What `to_list` gave. ValueError if it cannot be."""
        try:
            return cls(tuple(_exemption(each) for each in listed))
        except (KeyError, TypeError) as error:
            raise ValueError(f"PrecisionPlan: {listed!r} is no plan ({error!r}); write one, or calibrate.") from error


@dataclass(frozen=True)
class Candidate:
    """An exemption and what it gained when it was measured alone.

    Attributes:
        gain: how much lower the final error was, as a share of the error without it: 0.1 is a tenth.
        standard_error: of the gain, over runs; 0 where it is not known.
    """

    exemption: Exemption
    gain: float
    standard_error: float = 0.0

    @classmethod
    def measured(cls, exemption: Exemption, errors: Sequence[float], plain: Sequence[float]) -> Candidate:
        """errors: of each run with the exemption, squared; plain: of the same runs without it."""
        gains = [1.0 - after / max(before, TINY) for after, before in zip(errors, plain, strict=True)]
        error = stdev(gains) / math.sqrt(len(gains)) if len(gains) > 1 else 0.0
        return cls(exemption, fmean(gains), error)


def first_and_last(sigmas: Sequence[float], first: int, last: int) -> PrecisionPlan:
    """All layers in the first and the last steps of a schedule.

    Args:
        sigmas: N + 1 noise levels that do not rise, as a sampler takes them.
        first, last: steps; together N at most, or more, which is every step.
    Raises:
        ValueError: a number is negative, or the schedule is shorter than a step.
    """
    steps = len(sigmas) - 1
    if first < 0 or last < 0 or steps < 1:
        raise ValueError(
            f"first_and_last: first {first}, last {last} of {steps} steps; pass whole numbers of at least 0 and a schedule."
        )
    if first + last >= steps:
        return PrecisionPlan((Exemption(),))
    early = [Exemption(math.inf, _between(sigmas[first - 1], sigmas[first]))] * (first > 0)
    late = [Exemption(_between(sigmas[steps - last - 1], sigmas[steps - last]), 0.0)] * (last > 0)
    return PrecisionPlan((*early, *late))


def step_ranges(sigmas: Sequence[float], size: int) -> list[Exemption]:
    """All layers in each `size` steps of a schedule, in order: what is to be measured one at a time.

    Raises:
        ValueError: size is less than 1, or the schedule shorter than a step.
    """
    steps = len(sigmas) - 1
    if size < 1 or steps < 1:
        raise ValueError(f"step_ranges: size {size} of {steps} steps; pass at least 1 of each.")
    edges = [math.inf, *(_between(sigmas[i - 1], sigmas[i]) for i in range(size, steps, size)), 0.0]
    return [Exemption(high, low) for high, low in pairwise(edges)]


def layer_groups(multiply_adds: Mapping[str, int], share: float) -> list[Exemption]:
    """The layers in their order, parted into groups, each at every noise level: what is to be measured one at a time.

    Args:
        multiply_adds: of each rounded layer in one call.
        share: of all multiply-adds that a group takes at most, above 0. A layer that takes more is in none.
    Raises:
        ValueError: share is not above 0.
    """
    if not share > 0.0:
        raise ValueError(f"precision_plan.layer_groups: share is {share}; pass one above 0.")
    most = share * sum(multiply_adds.values()) * (1.0 + SLACK)
    groups: list[list[str]] = [[]]
    spent = 0
    for layer, cost in multiply_adds.items():
        if not 0 < cost <= most:
            continue
        if spent + cost > most:
            groups.append([])
            spent = 0
        groups[-1].append(layer)
        spent += cost
    return [Exemption(layers=tuple(group)) for group in groups if group]


def parts_within(budget: float, sigmas: Sequence[float], multiply_adds: Mapping[str, int]) -> list[Exemption]:
    """What is to be measured alone under a budget: ranges of steps, then groups of layers, each of which fits it.

    Args:
        budget: share of a run's multiply-adds, above 0. sigmas: N + 1 noise levels, as a sampler takes them.
        multiply_adds: of each rounded layer in one call.
    Raises:
        ValueError: budget is not above 0.
    """
    steps = len(sigmas) - 1
    size = min(math.ceil(steps / MOST_RANGES), int(budget * steps + SLACK))
    ranges = step_ranges(sigmas, size) if size > 0 else []
    return [*ranges, *layer_groups(multiply_adds, min(budget, max(SMALLEST_GROUP, budget / 2)))]


def choose(
    candidates: Sequence[Candidate], sigmas: Sequence[float], multiply_adds: Mapping[str, int], budget: float
) -> PrecisionPlan:
    """The candidates with the highest gain per cost that fit a budget together.

    Greedy: gains are taken to add up; where exemptions overlap, the rest of one gains in proportion to what it adds to the
    cost. If the best single candidate beats all that the greedy choice found, it is taken instead; that bounds the loss
    against the best choice to a half. Measure the plan as a whole afterwards: gains do not add up exactly.

    Args:
        candidates: those whose gain is not above its standard error are left out.
        sigmas: noise levels of the network's calls in a run. multiply_adds: of each rounded layer in one call.
        budget: share of these multiply-adds that may be unrounded, 0 to 1.
    Raises:
        ValueError: budget is outside 0 to 1; there are no calls or layers.
    """
    if not 0.0 <= budget <= 1.0:
        raise ValueError(f"precision_plan.choose: budget is {budget}; pass a share of 0 to 1.")
    useful = [each for each in candidates if each.gain > each.standard_error]
    alone = {id(each): PrecisionPlan((each.exemption,)).share(sigmas, multiply_adds) for each in useful}
    useful = [each for each in useful if 0.0 < alone[id(each)] <= budget + SLACK]
    chosen: list[Candidate] = []
    spent = total = 0.0
    while True:
        best: tuple[float, Candidate, float, float] | None = None
        for each in useful:
            cost = PrecisionPlan((*(c.exemption for c in chosen), each.exemption)).share(sigmas, multiply_adds) - spent
            if cost <= SLACK or spent + cost > budget + SLACK:
                continue
            rate = each.gain / alone[id(each)]
            if best is None or rate > best[0]:
                best = rate, each, cost, each.gain * cost / alone[id(each)]
        if best is None:
            break
        chosen.append(best[1])
        spent, total = spent + best[2], total + best[3]
    single = max(useful, key=lambda each: each.gain, default=None)
    if single is not None and single.gain > total:
        chosen = [single]
    return PrecisionPlan(tuple(each.exemption for each in chosen))


def _exemption(listed: Mapping[str, Any]) -> Exemption:
    start, layers = listed["sigma_start"], listed["layers"]
    return Exemption(
        math.inf if start is None else float(start),
        float(listed["sigma_end"]),
        None if layers is None else tuple(map(str, layers)),
    )


def _between(high: float, low: float) -> float:
    """An edge between two steps' noise levels, where rounding moves neither across it."""
    return (high + low) / 2
