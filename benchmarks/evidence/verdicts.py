"""The one rule behind every verdict of the report.

A row judges comparisons, each with a 95 % t interval over the seeds (or over jackknife values). Each votes:

    +1  for:      a claimed sign: the whole interval lies on that side of 0. A claimed range: the interval overlaps it.
                  A claimed "no difference": the interval holds 0. "not better", "not worse": it is not wholly there.
     0  open:     a claimed sign: the interval holds 0. A claimed range: the interval misses it, but lies wholly on the
                  range's side of the value at which nothing would be claimed (a ratio's 1).
    -1  against:  anything else.

The verdict counts the votes. All for: reproduced. None for, some against: refuted. Neither: not reproduced. For and
against: mixed, mostly the larger. "in part" where the rest is open. Fewer than one decided vote in ten is what chance
gives: not reproduced. No vote: cannot be judged. A row that makes no claim asks whether something is better: the same
counts then say better, no difference and worse. Claims of size without a number ("small", "much") are read as a sign.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from .metrics import Estimate
from .table import brief, tally

CLAIM = "reproduced", "not reproduced", "refuted"
QUESTION = "better", "no difference", "worse"
RARE = 0.1  # a smaller share of decided votes is what chance gives
SIGNS = {  # what is claimed -> vote of an estimate that is better, no difference, worse
    "better": (1, 0, -1),
    "worse": (-1, 0, 1),
    "no difference": (-1, 1, -1),
    "not better": (-1, 1, 1),
    "not worse": (1, 1, -1),
}


def votes(values: Iterable[Estimate], claimed: str = "better") -> list[int]:
    """Of differences in something of which less is better. claimed: of SIGNS."""
    return [SIGNS[claimed][QUESTION.index(value.word)] for value in values]


def range_vote(value: Estimate, low: float, high: float, neutral: float) -> int:
    """Of a value claimed to be in [low, high]. neutral: outside that range or at its edge; there nothing is claimed.

    One seed has no interval and votes 0.
    """
    if math.isnan(value.half):
        return 0
    least, most = value.mean - value.half, value.mean + value.half
    if least <= high and most >= low:
        return 1
    return 0 if (least > neutral if low >= neutral else most < neutral) else -1


def verdict(cast: Iterable[int], words: tuple[str, str, str] = CLAIM) -> str:
    """words: for, open and against, of CLAIM or QUESTION."""
    cast = list(cast)
    yes, neither, no = words
    agree, against = cast.count(1), cast.count(-1)
    if not cast:
        return "cannot be judged"
    if agree + against < RARE * len(cast):
        return neither
    if agree and against:
        return "mixed" if agree == against else f"mixed, mostly {yes if agree > against else no}"
    word = yes if agree else no
    return word if agree + against == len(cast) else f"{word} in part"


def finding(
    claim: str,
    changes: Mapping[str, Sequence[Estimate]],
    claimed: str = "better",
    words: tuple[str, str, str] = CLAIM,
    ranges: Mapping[str, Sequence[int]] | None = None,
) -> tuple[str, str, str]:
    """A claim, the comparisons that judge it, and the verdict.

    changes: differences by what they are of, of which `claimed` is claimed. ranges: votes by the text of what they judge.
    """
    texts = [
        f"{label}: {tally(values)}" if len(values) > 2 else f"{label} {', '.join(map(brief, values))}"
        for label, values in changes.items()
    ]
    cast = [vote for values in changes.values() for vote in votes(values, claimed)]
    cast += [vote for each in (ranges or {}).values() for vote in each]
    return claim, "; ".join([*(ranges or {}), *texts]), verdict(cast, words)
