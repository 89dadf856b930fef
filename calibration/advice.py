"""Which candidate of a trial on held-out runs to take, if any."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from .correctors import CORRECTORS
from .seen import UNCHANGED, Seen, noise

# To be advised a correction must lower the samples' own error in every run, by this share on the whole;
CLEAR = 0.03
# or the distance of their statistics, where that is not small already, and leave the error as it is.
CLEAR_DISTANCE, WORTH_IT = 0.2, 0.01
# Two candidates are equal while their errors differ by less than their noise, and by no more than this share.
MOST_ALIKE = 0.1

Rows = Sequence[Sequence[float]]


@dataclass(frozen=True)
class Advice:
    """correction: one of CORRECTORS, or "" for leaving the model alone. error: its error by plain sampling's."""

    correction: str
    strength: float
    error: float


def advise(candidates: Sequence[tuple[str, float]], error: Rows, distance: Rows, seen: Seen | None) -> Advice:
    """What lowers the error most, clearly and in every run; else what so lowers the distance and leaves the error as it
    is; else nothing. Never what makes colours, grain or composition clearly worse than no correction.

    Of candidates that are equal within noise the one at full strength is taken, and the one in which less acts.

    Args:
        candidates: the first is no correction. error, distance: by candidate, for each run.
        seen: what the pictures show; None where a file does not tell.
    """
    harmless = [i for i in range(1, len(candidates)) if seen is None or not seen.worse(i)]
    options = [i for i in harmless if _lowers(error, i, CLEAR)]
    judged = error if seen is None else seen.error  # a picture each: more pairs, so that less is noise
    if not options and fmean(distance[0]) > WORTH_IT:
        options = [
            i
            for i in harmless
            if _lowers(distance, i, CLEAR_DISTANCE) and fmean(error[i]) <= (1.0 + UNCHANGED) * fmean(error[0])
        ]
        judged = distance
    if not options:
        return Advice("", 0.0, 1.0)
    best = _simplest(candidates, options, judged, seen)
    return Advice(*candidates[best], error=fmean(error[best]) / fmean(error[0]) if any(error[0]) else 1.0)


def _lowers(values: Rows, index: int, share: float) -> bool:
    mean = sum(values[index]) <= (1.0 - share) * sum(values[0])
    return mean and all(value < plain for value, plain in zip(values[index], values[0], strict=True))


def _simplest(candidates: Sequence[tuple[str, float]], options: Sequence[int], judged: Rows, seen: Seen | None) -> int:
    """Of the candidates that are equal to the best one."""
    best = min(options, key=lambda i: fmean(judged[i]))
    least = fmean(judged[best])

    def alike(i: int) -> bool:
        apart = fmean(judged[i]) - least
        within = max(UNCHANGED * least, min(noise(judged[i], judged[best]), MOST_ALIKE * least))
        return apart <= within and (seen is None or not seen.worse(i, best))

    def order(i: int) -> tuple[bool, int, float]:
        name, strength = candidates[i]
        return strength != 1.0, CORRECTORS[name].parts, fmean(judged[i])

    return min((i for i in options if alike(i)), key=order)
