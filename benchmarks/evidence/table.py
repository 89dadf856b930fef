"""Stored results as numbers with errors, and as markdown."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from . import runs
from .metrics import Estimate, at_equal, estimate, paired


class Part:
    """The stored results of one part: values by row and measure, one for each seed, in the order of the seeds."""

    def __init__(self, folder: Path, name: str) -> None:
        self.stored = runs.load(folder, name)
        names = [set(seed["runs"]) for seed in self.stored]
        self.names = [row for row in self.stored[0]["runs"] if all(row in seed for seed in names)] if names else []

    def __contains__(self, row: str) -> bool:
        return row in self.names

    @property
    def seeds(self) -> int:
        return len(self.stored)

    def measured(self, row: str, measure: str) -> bool:
        return measure in self.stored[0]["runs"][row]

    def values(self, row: str, measure: str) -> list[float]:
        return [seed["runs"][row][measure] for seed in self.stored]

    def mean(self, row: str, measure: str) -> Estimate:
        return estimate(self.values(row, measure))

    def change(self, row: str, base: str, measure: str) -> Estimate:
        """Paired by seed."""
        return paired(self.values(row, measure), self.values(base, measure))

    def log_change(self, row: str, base: str, measure: str) -> Estimate:
        """Paired by seed, of the measure's logarithm."""
        return paired(*([math.log(value) for value in self.values(name, measure)] for name in (row, base)))

    def against_curve(self, row: str, curve: Sequence[str], axis: str, measure: str, log: bool = False) -> Estimate:
        """row minus the curve through the rows of `curve`, at row's own value of axis; over the seeds that have it.

        log: between its rows the curve is interpolated in the measure's logarithm.
        """
        return estimate([self._above_curve(row, curve, axis, measure, log, [seed]) for seed in range(self.seeds)])

    def pooled_against_curve(
        self, row: str, curve: Sequence[str], axis: str, measure: str, log: bool = False
    ) -> Estimate:
        """The same of the means over seeds, with the jackknife's error over seeds; n = 0 where the curve has no value."""
        return jackknife(partial(self._above_curve, row, curve, axis, measure, log), self.seeds)

    def _above_curve(
        self, row: str, curve: Sequence[str], axis: str, measure: str, log: bool, seeds: Sequence[int]
    ) -> float:
        def mean(name: str, key: str) -> float:
            values = self.values(name, key)
            return math.fsum(values[seed] for seed in seeds) / len(seeds)

        ys = [mean(name, measure) for name in curve]
        ys = [math.log(y) for y in ys] if log else ys
        interpolated = at_equal(mean(row, axis), [mean(name, axis) for name in curve], ys)
        return mean(row, measure) - (math.exp(interpolated) if log else interpolated)

    def root_mean(self, row: str, measure: str) -> Estimate:
        """Root of the mean over seeds, 0 where that is negative, with the error of the jackknife over seeds."""
        values = self.values(row, measure)
        return jackknife(lambda seeds: max(math.fsum(values[i] for i in seeds) / len(seeds), 0.0) ** 0.5, self.seeds)


def jackknife(value: Callable[[Sequence[int]], float], count: int) -> Estimate:
    """Of what is found from all of `count` samples, by leaving out each; n = 0 where it is nan, or the samples too few."""
    if count < 2:
        return estimate([])
    whole = value(range(count))
    without = [value([each for each in range(count) if each != left]) for left in range(count)]
    pseudo = [count * whole - (count - 1) * each for each in without]
    return estimate(pseudo if not any(map(math.isnan, pseudo)) else [])


TITLES = {
    "fd_features": "FD features",
    "fd_pixels": "FD pixels",
    "accuracy": "accuracy, %",
    "margin": "margin",
    "saturation": "pixels out of range, %",
    "tail": "in tails, %",
    "kurtosis": "kurtosis",
    "spread": "std / real",
}
SPACES = {measure: TITLES[measure] for measure in ("fd_features", "fd_pixels")}
PERCENT = ("accuracy", "saturation", "tail", "error")  # stored as shares
Column = tuple[str, Callable[[Any], str]]  # title, and the cell of a row


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def tabulate(rows: Iterable[Any], *columns: Column) -> str:
    """Markdown; "" without rows."""
    cells = [[cell(row) for _, cell in columns] for row in rows]
    return markdown([title for title, _ in columns], cells) if cells else ""


def means(part: Part, *measures: str) -> list[Column]:
    """Columns of means over seeds, of rows by name; empty where a row was not measured so."""
    return [(TITLES[measure], partial(mean, part, measure=measure)) for measure in measures]


def mean(part: Part, row: str, measure: str) -> str:
    return plus_minus(part.mean(row, measure), measure in PERCENT) if part.measured(row, measure) else ""


def number(value: float, error: float = math.nan, sign: bool = False) -> str:
    """As many digits as the error gives sense to; "-" for nan."""
    if math.isnan(value):
        return "-"
    guide = error if error > 0 else abs(value) / 50
    digits = _digits(guide) if guide > 0 else 2
    text = f"{value:+.{digits}f}" if sign else f"{value:.{digits}f}"
    return f"{text} ± {error:.{digits}f}" if error == error else text


def _digits(error: float) -> int:
    return min(max(1 - math.floor(math.log10(error)), 0), 5) if error > 0 else 2


def plus_minus(value: Estimate, percent: bool = False) -> str:
    scale = 100.0 if percent else 1.0
    return number(value.mean * scale, value.error * scale)


def difference(value: Estimate, percent: bool = False) -> str:
    """Mean difference, standard error and t interval."""
    if math.isnan(value.mean):
        return "-"
    scale = 100.0 if percent else 1.0
    mean, error, half = (scale * v for v in value[:3])
    digits = _digits(error)
    interval = f"[{mean - half:+.{digits}f}, {mean + half:+.{digits}f}]"
    return f"{number(mean, error, sign=True)} {interval}"


def worded(value: Estimate, measure: str, seeds: int = 0) -> str:
    """A difference and its word. seeds: fewer of them are not comparable."""
    if value.n < seeds:
        return f"not comparable ({value.n} of {seeds})"
    return f"{difference(value, measure in PERCENT)} **{value.word}**"


def times(change: Estimate) -> str:
    """A change of the logarithm as a factor, its interval and a word."""
    ends = (change.mean, change.mean - change.half, change.mean + change.half)
    middle, low, high = map(math.exp, ends)
    return f"x {middle:.3g} [{low:.3g}, {high:.3g}] **{change.word}**"


def brief(value: Estimate) -> str:
    return f"{number(value.mean, value.error, sign=True)}, {value.word}"


def tally(values: Sequence[Estimate]) -> str:
    """How many of these differences are better, no difference and worse."""
    words = [value.word for value in values]
    return ", ".join(f"{words.count(word)} {word}" for word in ("better", "no difference", "worse") if word in words)
