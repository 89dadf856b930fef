"""The referee's tables and plot: each rule against plain guidance of the same strength."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path

from . import referee, referee_parts
from .metrics import Estimate, at_equal, estimate
from .referee import PLAIN, Row
from .referee_parts import GUIDANCE, SCREENED, SWEEP, SWEPT
from .table import SPACES, Column, Part, mean, tabulate
from .verdicts import QUESTION, verdict, votes

AXES = {"contrast": "contrast", "spread": "deviation", "margin": "margin"}
STRENGTH = ("contrast", "spread")  # what the verdict goes by
SHOWN = {
    "fd_features": "FD features",
    "fd_pixels": "FD pixels",
    "accuracy": "accuracy, %",
    "margin": "margin",
    "contrast": "contrast",
    "spread": "deviation",
    "norm": "guidance norm",
}
CFGS = sorted({*referee_parts.LONG_CURVE, *referee_parts.CONFIRMED, GUIDANCE, referee_parts.STRONG})


def curve(part: Part, row: Row, rule: str = PLAIN) -> list[str]:
    """A rule's rows in the setting of `row`, by rising cfg."""
    names = (Row(rule, cfg, row.steps, row.sampler).name for cfg in CFGS)
    return [name for name in names if name in part]


def logarithms(part: Part, row: Row, axis: str, measure: str, rule: str = PLAIN) -> list[float]:
    """Of the row's distance over plain guidance's (or a rule's) at the row's own value of axis, seed by seed; nan where that
    has no place for it."""
    names = curve(part, row, rule)
    xs = zip(*(part.values(name, axis) for name in names), strict=True)
    ys = zip(*(part.values(name, measure) for name in names), strict=True)
    own = zip(part.values(row.name, axis), part.values(row.name, measure), strict=True)
    return [
        math.log(y) - at_equal(x, curve_x, [math.log(value) for value in curve_y])
        for (x, y), curve_x, curve_y in zip(own, xs, ys, strict=True)
    ]


def ratio(part: Part, row: Row, axis: str, measure: str, rule: str = PLAIN) -> Estimate:
    return estimate(logarithms(part, row, axis, measure, rule))


def word(part: Part, row: Row) -> str:
    """The verdict: both distances, at equal contrast and at equal deviation. Every seed has to be comparable."""
    found = [ratio(part, row, axis, measure) for axis in STRENGTH for measure in SPACES]
    return verdict(votes([value for value in found if value.n == part.seeds]), QUESTION)


def tables(folder: Path) -> dict[str, str]:
    """Markdown by name."""
    part, first = Part(folder, "referee"), Part(folder, "referee")
    first.stored = [seed for seed in first.stored if seed["about"]["seed"] == SCREENED]
    at_guidance = [name for name in _rules() if Row(name, GUIDANCE).name in part]
    swept = [Row(rule, cfg) for rule in SWEPT for cfg in sorted({GUIDANCE, *SWEEP}) if Row(rule, cfg).name in part]
    screened = [name for name in referee.CANDIDATES if Row(name, GUIDANCE).name in first.stored[0]["runs"]]
    return {
        "plain": tabulate(curve(part, Row(PLAIN, GUIDANCE)), ("cfg", lambda row: row.split(", ")[1]), *_means(part)),
        "rules": compared(part, [Row(rule, GUIDANCE) for rule in at_guidance]),
        "means": tabulate(
            [Row(rule, GUIDANCE).name for rule in at_guidance],
            ("rule", lambda row: row.rpartition(f", {GUIDANCE:g}, ")[0]),
            *_means(part),
        ),
        "sweep": compared(part, swept),
        "candidates": tabulate(
            screened,
            ("rule", str),
            *each_cell(partial(_plain_cell, first)),
        ),
    }


def _rules() -> Iterator[str]:
    yield from referee.OURS
    yield from referee.PEERS
    yield from referee.CANDIDATES


def _means(part: Part) -> list:
    return [(title, partial(mean, part, measure=measure)) for measure, title in SHOWN.items()]


def percent(found: Estimate, seeds: int) -> str:
    """A logarithm's estimate as a change in percent, with its interval."""
    if found.n < seeds:
        return f"not comparable ({found.n} of {seeds})"
    low, middle, high = (100 * math.expm1(found.mean + side * found.half) for side in (-1, 0, 1))
    return f"{middle:+.0f} % [{low:+.0f}, {high:+.0f}]"


def compared(part: Part, rows: list[Row], *more: Column) -> str:
    """Rows against plain guidance. more: columns behind the rule and its cfg."""

    def cell(axis: str, measure: str, row: Row) -> str:
        return percent(ratio(part, row, axis, measure), part.seeds)

    return tabulate(
        rows,
        ("rule", lambda row: row.rule),
        ("cfg", lambda row: f"{row.cfg:g}"),
        *more,
        ("verdict", lambda row: f"**{word(part, row)}**"),
        *each_cell(cell),
    )


def each_cell(cell: Callable[..., str], axes: Iterable[str] = AXES) -> list[Column]:
    """A column for each distance at each kind of equal strength. cell(axis, measure, row)."""
    return [
        (f"{title}, equal {AXES[key]}", partial(cell, key, measure))
        for key in axes
        for measure, title in SPACES.items()
    ]


def _plain_cell(first: Part, axis: str, measure: str, rule: str) -> str:
    found = ratio(first, Row(rule, GUIDANCE), axis, measure).mean
    return "-" if math.isnan(found) else f"{100 * math.expm1(found):+.0f} %"
