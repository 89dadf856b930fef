"""What held-out pictures show of each candidate of a trial, and which candidates make it clearly worse."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from statistics import fmean, stdev
from typing import Any

from .measures import Measures
from .text import is_number

MOST_MEASURE, MOST_LOG = 1e15, 100.0
MOST = dict.fromkeys(Measures._fields, (0.0, MOST_MEASURE)) | {"grain": (-MOST_LOG, MOST_LOG)}  # lowest, highest
MOST_PICTURES = 1_000_000
# A change that is smaller than this is none, however sure it is: of the picture's contrast, of the logarithm of grain's
# power, of the composition's own size; and this share of what plain sampling has.
LEAST = {"colour": 0.005, "grain": 0.02, "composition": 0.005}
UNCHANGED = 0.02
FARTHER = 0.1  # of the composition's own size: a picture that is seen to differ
SURE = 2.0  # standard errors

Rows = tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class Seen:
    """By candidate, for each held-out picture, as `Measures` has them: run by run, of each run all of its batch.

    Raises:
        ValueError: rows differ in length, or a number cannot be.
    """

    error: Rows
    colour: Rows
    grain: Rows
    composition: Rows

    def __post_init__(self) -> None:
        rows = [row for measure in fields(self) for row in getattr(self, measure.name)]
        counts = {len(getattr(self, measure.name)) for measure in fields(self)}
        if len(counts) != 1 or len({len(row) for row in rows}) != 1 or not 1 <= len(rows[0]) <= MOST_PICTURES:
            raise ValueError("Trial: what the pictures show does not fit together; calibrate again.")
        for measure in fields(self):
            low, high = MOST[measure.name]
            if not all(is_number(value, low, high) for row in getattr(self, measure.name) for value in row):
                raise ValueError(
                    f"Trial: a picture's {measure.name} is not between {low:g} and {high:g}; calibrate again."
                )

    @classmethod
    def of(cls, measures: Sequence[Sequence[Measures]]) -> Seen:
        """measures: for each run, of each candidate."""

        def rows(name: str) -> Rows:
            each = [[getattr(found, name).tolist() for found in run] for run in measures]
            return tuple(tuple(v for run in each for v in run[c]) for c in range(len(each[0])))

        return cls(*(rows(measure.name) for measure in fields(cls)))

    @classmethod
    def joined(cls, parts: Sequence[Seen], places: Sequence[Sequence[int]]) -> Seen:
        """The pictures of several trials, of each the candidates at these places."""
        return cls(*(joined([getattr(part, measure.name) for part in parts], places) for measure in fields(cls)))

    @classmethod
    def from_parts(cls, parts: Mapping[str, Any]) -> Seen:
        """From lists, as in a file. KeyError, TypeError or ValueError if it is no such thing."""
        return cls(*(tuple(tuple(row) for row in parts[measure.name]) for measure in fields(cls)))

    @property
    def candidates(self) -> int:
        return len(self.error)

    @property
    def pictures(self) -> int:
        return len(self.error[0])

    def size(self, name: str, index: int) -> float:
        """How far a candidate's pictures are off in one measure, on the mean; without a sign."""
        return fmean(self._sizes(name, index))

    def grain_change(self, index: int) -> float:
        """The logarithm of grain's power to full precision's, mean of the pictures."""
        return fmean(self.grain[index])

    def change(self, name: str, index: int, other: int = 0) -> int:
        """1 where a candidate is clearly closer to full precision than another one, -1 clearly farther, else 0."""
        ours, theirs = self._sizes(name, index), self._sizes(name, other)
        least = max(LEAST[name], UNCHANGED * fmean(theirs))
        if clearly_more(ours, theirs, least):
            return -1
        return int(clearly_more(theirs, ours, least))

    def farther(self, name: str, index: int) -> int:
        """In how many pictures a candidate is farther from full precision than no correction, by more than FARTHER."""
        pairs = zip(self._sizes(name, index), self._sizes(name, 0), strict=True)
        return sum(ours - plain > FARTHER for ours, plain in pairs)

    def worse(self, index: int, other: int = 0) -> list[str]:
        """Names of the measures in which a candidate is clearly farther from full precision than another one."""
        return [name for name in LEAST if self.change(name, index, other) < 0]

    def _sizes(self, name: str, index: int) -> list[float]:
        return [abs(value) for value in getattr(self, name)[index]]


def joined(parts: Sequence[Rows], places: Sequence[Sequence[int]]) -> Rows:
    """Rows of several trials one after another, of each part those at its places."""
    chosen = [[part[i] for i in at] for part, at in zip(parts, places, strict=True)]
    return tuple(tuple(value for row in rows for value in row) for rows in zip(*chosen, strict=True))


def noise(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """SURE standard errors of the mean paired difference; 0 of a single pair, whose noise cannot be told."""
    apart = [one - two for one, two in zip(ours, theirs, strict=True)]
    return SURE * stdev(apart) / math.sqrt(len(apart)) if len(apart) > 1 else 0.0


def clearly_more(ours: Sequence[float], theirs: Sequence[float], least: float) -> bool:
    """Whether the first are larger on the mean by more than `least` and by more than their differences' noise."""
    return fmean(ours) - fmean(theirs) > max(least, noise(ours, theirs))
