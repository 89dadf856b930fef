"""What corrections did on runs that they were not made from, and what that advises."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import NamedTuple

from torch import Tensor

from .advice import Advice, advise
from .correctors import CORRECTORS, found
from .measures import Decode, Measures, measured
from .seen import MOST_MEASURE, Seen, joined
from .text import is_number, printable, strict_json

PLAIN, SEEN = "plain", "seen"
# What a trial may hold: strengths, measures (a share of full precision's variance), ways of sampling, runs.
MOST_STRENGTH, MOST_CANDIDATES, MOST_RUNS = 10.0, 100, 10_000


class Tried(NamedTuple):
    """One candidate on one held-out run: error and distance as `Trial` has them, and what its pictures show."""

    error: float
    distance: float
    seen: Measures


@dataclass(frozen=True)
class Trial:
    """Held-out runs, each sampled by full precision and by the quantized model in several ways from the same noise.

    Attributes:
        candidates: (correction, strength) in order; the first is (PLAIN, 0.0), no correction.
        error: by candidate, for each run: mean squared difference of its latent to full precision's, by that one's variance.
        distance: by candidate, for each run: the squared differences of the channels' means and deviations to full
            precision's, summed, by the sum of its variances.
        seen: what each picture shows; None in files of earlier versions.
    Raises:
        ValueError: the parts do not fit together, or a number cannot be.
    """

    candidates: tuple[tuple[str, float], ...]
    error: tuple[tuple[float, ...], ...]
    distance: tuple[tuple[float, ...], ...]
    seen: Seen | None = None

    def __post_init__(self) -> None:
        self._check_candidates()
        rows = (*self.error, *self.distance)
        whole = len(self.candidates) == len(self.error) == len(self.distance) > 0
        if not whole or self.candidates[0] != (PLAIN, 0.0) or len({len(row) for row in rows}) != 1 or not rows[0]:
            raise ValueError("Trial: candidates, error and distance do not fit together; calibrate again.")
        seen = self.seen
        if seen is not None and (seen.candidates != len(self.candidates) or seen.pictures < len(rows[0])):
            raise ValueError("Trial: what the pictures show is not of these candidates and runs; calibrate again.")
        if len(rows[0]) > MOST_RUNS:
            raise ValueError(f"Trial: it has {len(rows[0])} runs, more than {MOST_RUNS}; calibrate again.")
        if not all(is_number(value, 0.0, MOST_MEASURE) for row in rows for value in row):
            raise ValueError(
                f"Trial: an error or distance is negative, not finite or beyond {MOST_MEASURE:g}; calibrate again."
            )

    def _check_candidates(self) -> None:
        if len(self.candidates) > MOST_CANDIDATES:
            raise ValueError(f"Trial: it has {len(self.candidates)} candidates, more than {MOST_CANDIDATES}.")
        for name, strength in self.candidates[1:]:
            if name not in CORRECTORS:
                known = ", ".join(CORRECTORS)
                raise ValueError(
                    f"Trial: correction {printable(name, 40)!r} is none of {known}; update Gimbal, or calibrate again."
                )
            if not is_number(strength, 0.0, MOST_STRENGTH) or strength == 0.0:
                raise ValueError(
                    f"Trial: the strength of {name} is {strength!r:.40}, not above 0 and at most {MOST_STRENGTH:g}; "
                    "calibrate again."
                )
        if len(set(self.candidates)) != len(self.candidates):
            raise ValueError("Trial: a candidate stands twice; calibrate again.")

    @classmethod
    def of(cls, candidates: Sequence[tuple[str, float]], runs: Sequence[Sequence[Tried]]) -> Trial:
        """runs: for each run, of each candidate."""
        error, distance = (
            tuple(tuple(getattr(run[c], name) for run in runs) for c in range(len(candidates)))
            for name in ("error", "distance")
        )
        return cls(tuple(candidates), error, distance, Seen.of([[each.seen for each in run] for run in runs]))

    @classmethod
    def merged(cls, parts: Sequence[Trial | None], layers: bool, plan: bool = False) -> Trial | None:
        """The held-out runs of all parts one after another, for the candidates that all have tried and that merged
        statistics hold: what each part's own correction did. None if a part has no trial.

        layers, plan: whether the merged statistics hold a layer correction, a precision plan.
        """
        names = found(maps=False, layers=layers, plan=plan)
        whole = [part for part in parts if part is not None]
        first = whole[0].candidates if len(whole) == len(parts) else ()
        kept = [each for each in first[1:] if each[0] in names and all(each in part.candidates for part in whole)]
        if not kept:
            return None
        seen = [part.seen for part in whole if part.seen is not None]
        places = [[0, *(part.candidates.index(each) for each in kept)] for part in whole]

        error, distance = (joined([getattr(part, name) for part in whole], places) for name in ("error", "distance"))
        pictures = Seen.joined(seen, places) if len(seen) == len(whole) else None
        return cls((first[0], *kept), error, distance, pictures)

    @property
    def runs(self) -> int:
        return len(self.error[0])

    def mean_error(self, index: int) -> float:
        return sum(self.error[index]) / self.runs

    def mean_distance(self, index: int) -> float:
        return sum(self.distance[index]) / self.runs

    def advice(self) -> Advice:
        """What to take, if anything."""
        return advise(self.candidates, self.error, self.distance, self.seen)

    def to_text(self) -> str:
        parts = {"candidates": self.candidates, "error": self.error, "distance": self.distance}
        return json.dumps(parts if self.seen is None else {**parts, SEEN: asdict(self.seen)})

    @classmethod
    def from_text(cls, text: str) -> Trial:
        """The inverse. ValueError if it is no such text."""
        try:
            parts = strict_json(text)
            candidates = tuple((name, strength) for name, strength in parts["candidates"])
            error, distance = (tuple(tuple(row) for row in parts[name]) for name in ("error", "distance"))
            whole = all(isinstance(name, str) and is_number(s, 0.0, MOST_STRENGTH) for name, s in candidates)
            seen = Seen.from_parts(parts[SEEN]) if SEEN in parts else None
        except (KeyError, TypeError, ValueError) as fault:
            raise ValueError(f"Trial: its text cannot be read ({printable(fault)}); calibrate again.") from fault
        if not whole:
            raise ValueError(
                f"Trial: a candidate is not a name and a strength from 0 to {MOST_STRENGTH:g}; calibrate again."
            )
        return cls(candidates, error, distance, seen)


def judged(sample: Tensor, full: Tensor, decode: Decode | None = None) -> Tried:
    """One run's latent against full precision's; as `compared` and `measured` take them, and raise."""
    return Tried(*compared(sample, full), measured(sample, full, decode))


def compared(sample: Tensor, full: Tensor) -> tuple[float, float]:
    """Error and distance of one run's latent, as `Trial` has them; (B, C, *spatial) each, on the CPU."""
    ours, theirs = (part.double().movedim(1, 0).flatten(1) for part in (sample, full))  # (C, positions)
    variance = theirs.var(1, correction=0)
    power = float(variance.mean())
    if power == 0.0:
        raise ValueError(
            "the full-precision sample is constant, so nothing can be compared with it; look at its picture."
        )
    deviation = ours.std(1, correction=0) - variance.sqrt()
    distance = (ours.mean(1) - theirs.mean(1)).square() + deviation.square()
    return float((ours - theirs).square().mean()) / power, float(distance.sum() / variance.sum())
