"""The referee's tables and plot: each rule against plain guidance of the same strength."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from . import referee
from .metrics import Estimate, at_equal, estimate
from .referee import GUIDANCE, PLAIN, SCREENED, SWEEP, SWEPT, Row
from .table import SPACES, Part, mean, tabulate
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
CURVE = [Row(PLAIN, cfg).name for cfg in referee.CURVE]


def ratio(part: Part, row: str, axis: str, measure: str) -> Estimate:
    """Logarithm of the row's distance over plain guidance's at the row's own value of axis, seed by seed."""
    xs = zip(*(part.values(name, axis) for name in CURVE), strict=True)
    ys = zip(*(part.values(name, measure) for name in CURVE), strict=True)
    own = zip(part.values(row, axis), part.values(row, measure), strict=True)
    return estimate(
        [
            math.log(y) - at_equal(x, plain_x, [math.log(value) for value in plain_y])
            for (x, y), plain_x, plain_y in zip(own, xs, ys, strict=True)
        ]
    )


def word(part: Part, row: str) -> str:
    """The verdict: both distances, at equal contrast and at equal deviation. Every seed has to be comparable."""
    found = [ratio(part, row, axis, measure) for axis in STRENGTH for measure in SPACES]
    return verdict(votes([value for value in found if value.n == part.seeds]), QUESTION)


def tables(folder: Path) -> dict[str, str]:
    """Markdown by name."""
    part, first = Part(folder, "referee"), Part(folder, "referee")
    first.stored = [seed for seed in first.stored if seed["about"]["seed"] == SCREENED]
    at_guidance = [name for name in _rules() if Row(name, GUIDANCE).name in part]
    swept = [(rule, cfg) for rule in SWEPT for cfg in sorted({GUIDANCE, *SWEEP}) if Row(rule, cfg).name in part]
    screened = [name for name in referee.CANDIDATES if Row(name, GUIDANCE).name in first.stored[0]["runs"]]
    return {
        "plain": tabulate(CURVE, ("cfg", lambda row: row.split(", ")[1]), *_means(part)),
        "rules": _compared(part, [(rule, GUIDANCE) for rule in at_guidance]),
        "means": tabulate(
            [Row(rule, GUIDANCE).name for rule in at_guidance],
            ("rule", lambda row: row.rpartition(f", {GUIDANCE:g}, ")[0]),
            *_means(part),
        ),
        "sweep": _compared(part, swept),
        "candidates": tabulate(
            screened,
            ("rule", str),
            *[
                (f"{title}, equal {axis}", partial(_plain_cell, first, key, measure))
                for key, axis in AXES.items()
                for measure, title in SPACES.items()
            ],
        ),
    }


def _rules() -> Iterator[str]:
    yield from referee.OURS
    yield from referee.PEERS
    yield from referee.CANDIDATES


def _means(part: Part) -> list:
    return [(title, partial(mean, part, measure=measure)) for measure, title in SHOWN.items()]


def _compared(part: Part, rows: list[tuple[str, float]]) -> str:
    def cell(axis: str, measure: str, row: tuple[str, float]) -> str:
        found = ratio(part, Row(*row).name, axis, measure)
        if found.n < part.seeds:
            return f"not comparable ({found.n} of {part.seeds})"
        low, middle, high = (100 * math.expm1(found.mean + side * found.half) for side in (-1, 0, 1))
        return f"{middle:+.0f} % [{low:+.0f}, {high:+.0f}]"

    return tabulate(
        rows,
        ("rule", lambda row: row[0]),
        ("cfg", lambda row: f"{row[1]:g}"),
        ("verdict", lambda row: f"**{word(part, Row(*row).name)}**"),
        *[
            (f"{title}, equal {axis}", partial(cell, key, measure))
            for key, axis in AXES.items()
            for measure, title in SPACES.items()
        ],
    )


def _plain_cell(first: Part, axis: str, measure: str, rule: str) -> str:
    found = ratio(first, Row(rule, GUIDANCE).name, axis, measure).mean
    return "-" if math.isnan(found) else f"{100 * math.expm1(found):+.0f} %"
