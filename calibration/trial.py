"""What corrections did on runs that they were not made from, and what that advises."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass

from torch import Tensor

from .correctors import CORRECTORS
from .text import is_number, printable, strict_json

# To be advised a correction must lower the samples' own error in every run, by this share on the whole;
CLEAR = 0.03
# or the distance of their statistics, where that is not small already, and leave the error as it is.
CLEAR_DISTANCE, WORTH_IT, UNCHANGED = 0.2, 0.01, 0.02
PLAIN = "plain"
# What a trial may hold: strengths, measures (a share of full precision's variance), ways of sampling, runs.
MOST_STRENGTH, MOST_MEASURE, MOST_CANDIDATES, MOST_RUNS = 10.0, 1e15, 100, 10_000


@dataclass(frozen=True)
class Advice:
    """correction: one of CORRECTORS, or "" for leaving the model alone. error: its error by plain sampling's."""

    correction: str
    strength: float
    error: float


@dataclass(frozen=True)
class Trial:
    """Held-out runs, each sampled by full precision and by the quantized model in several ways from the same noise.

    Attributes:
        candidates: (correction, strength) in order; the first is (PLAIN, 0.0), no correction.
        error: by candidate, for each run: mean squared difference of its latent to full precision's, by that one's variance.
        distance: by candidate, for each run: the squared differences of the channels' means and deviations to full
            precision's, summed, by the sum of its variances.
    Raises:
        ValueError: the parts do not fit together, or a number cannot be.
    """

    candidates: tuple[tuple[str, float], ...]
    error: tuple[tuple[float, ...], ...]
    distance: tuple[tuple[float, ...], ...]

    def __post_init__(self) -> None:
        self._check_candidates()
        rows = (*self.error, *self.distance)
        whole = len(self.candidates) == len(self.error) == len(self.distance) > 0
        if not whole or self.candidates[0] != (PLAIN, 0.0) or len({len(row) for row in rows}) != 1 or not rows[0]:
            raise ValueError("Trial: candidates, error and distance do not fit together; calibrate again.")
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

    @property
    def runs(self) -> int:
        return len(self.error[0])

    def mean_error(self, index: int) -> float:
        return sum(self.error[index]) / self.runs

    def mean_distance(self, index: int) -> float:
        return sum(self.distance[index]) / self.runs

    def advice(self) -> Advice:
        """What lowered the error most, if it did so clearly in every run; else what lowered the distance most without
        raising the error, if it did so clearly in every run; else nothing."""
        options = [i for i in range(1, len(self.candidates)) if self._lowers(self.error, i, CLEAR)]
        best = min(options, key=self.mean_error, default=None)
        if best is None and self.mean_distance(0) > WORTH_IT:
            options = [
                i
                for i in range(1, len(self.candidates))
                if self._lowers(self.distance, i, CLEAR_DISTANCE)
                and self.mean_error(i) <= (1.0 + UNCHANGED) * self.mean_error(0)
            ]
            best = min(options, key=self.mean_distance, default=None)
        if best is None:
            return Advice("", 0.0, 1.0)
        return Advice(*self.candidates[best], error=self.mean_error(best) / self.mean_error(0))

    def _lowers(self, values: tuple[tuple[float, ...], ...], index: int, share: float) -> bool:
        mean = sum(values[index]) <= (1.0 - share) * sum(values[0])
        return mean and all(value < plain for value, plain in zip(values[index], values[0], strict=True))

    def to_text(self) -> str:
        return json.dumps({"candidates": self.candidates, "error": self.error, "distance": self.distance})

    @classmethod
    def from_text(cls, text: str) -> Trial:
        """The inverse. ValueError if it is no such text."""
        try:
            found = strict_json(text)
            candidates = tuple((name, strength) for name, strength in found["candidates"])
            error, distance = (tuple(tuple(row) for row in found[name]) for name in ("error", "distance"))
            whole = all(isinstance(name, str) and is_number(s, 0.0, MOST_STRENGTH) for name, s in candidates)
        except (KeyError, TypeError, ValueError) as fault:
            raise ValueError(f"Trial: its text cannot be read ({printable(fault)}); calibrate again.") from fault
        if not whole:
            raise ValueError(
                f"Trial: a candidate is not a name and a strength from 0 to {MOST_STRENGTH:g}; calibrate again."
            )
        return cls(candidates, error, distance)


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


def label(candidate: tuple[str, float]) -> str:
    """For tables and sentences: "moments", "moments at 0.5"."""
    name, strength = candidate
    return name if strength in (0.0, 1.0) else f"{name} at {strength:g}"


def sentence(trial: Trial) -> str:
    """What was tried, with its numbers, and the advice."""
    shown = ", ".join(
        f"{label(candidate)} {100 * math.sqrt(trial.mean_error(i)):.3g} %"
        for i, candidate in enumerate(trial.candidates)
    )
    many = "1 held-out run" if trial.runs == 1 else f"{trial.runs} held-out runs"
    tried = f"Tried on {many}, error of the final latent: {shown}"
    advice = trial.advice()
    if not advice.correction:
        return f"{tried}. Nothing helped clearly in every run: leave this model as it is."
    return f"{tried}. Advised: {advice.correction} at strength {advice.strength:g}."


def table(trial: Trial) -> list[str]:
    """Lines of text: a row for each way of sampling."""
    lines = ["", f"{'held-out runs':>18} {'error':>9} {'distance':>9} {'of plain':>9}  each run's error by plain's"]
    for i, candidate in enumerate(trial.candidates):
        ratios = [value / plain if plain else 1.0 for value, plain in zip(trial.error[i], trial.error[0], strict=True)]
        of_plain = trial.mean_error(i) / trial.mean_error(0) if trial.mean_error(0) else 1.0
        error, distance = (math.sqrt(value) for value in (trial.mean_error(i), trial.mean_distance(i)))
        each = " ".join(f"{ratio:.3f}" for ratio in ratios)
        lines.append(f"{label(candidate):>18} {error:9.2%} {distance:9.2%} {of_plain:9.3f}  {each}")
    return lines
