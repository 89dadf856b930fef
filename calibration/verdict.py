"""What a calibration comes to, in one line: whether a correction helps, by how much, and what to do next."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from enum import Enum

from . import report
from .report import percent
from .statistics import QDriftStatistics
from .trial import CLEAR, Trial


class Outcome(Enum):
    HELPS = "Helps"
    NOTHING = "Nothing to repair"
    CANNOT = "Cannot be repaired"
    UNTRIED = "Not tried"


@dataclass(frozen=True)
class Verdict:
    """outcome; amount: one clause with the figures; next_step: one sentence, or two."""

    outcome: Outcome
    amount: str
    next_step: str

    @property
    def line(self) -> str:
        """The first line of every report: "Helps: ...". At most about 130 characters."""
        return f"{self.outcome.value}: {self.amount}."


def verdict(statistics: QDriftStatistics) -> Verdict:
    """From the trial on held-out runs where there is one, else from the size of the error alone."""
    found, reference = _verdict(statistics), statistics.provenance.reference
    return replace(found, next_step=f"{found.next_step} Reference: {reference}.") if reference else found


def _verdict(statistics: QDriftStatistics) -> Verdict:
    error, tried = report.relative_error(statistics), statistics.trial
    if error == 0.0:
        return Verdict(
            Outcome.NOTHING,
            "the error is exactly 0",
            "Check quantized_model: it is the full-precision model, or its quantization was not used.",
        )
    if tried is not None and tried.advice().correction:
        return Verdict(Outcome.HELPS, _gain(tried), "Leave Quantization Fix at 'advised'." + _left(tried))
    if error < report.SLIGHT:
        return Verdict(
            Outcome.NOTHING,
            f"the error is {percent(error)} of the signal, too little to see",
            "Use the model as it is.",
        )
    if tried is None:
        return Verdict(
            Outcome.UNTRIED,
            f"the error is {percent(error)} of the signal, and no correction was tried on held-out runs",
            "Calibrate with held_out 2 or more.",
        )
    final = percent(math.sqrt(tried.mean_error(0)))
    return Verdict(
        Outcome.CANNOT,
        f"no correction helps in every held-out run; the final latent stays {final} off",
        "Take a finer quantization of the model, or use it as it is.",
    )


def _left(tried: Trial) -> str:
    """A further sentence where much is left."""
    advice = tried.advice()
    left = math.sqrt(tried.mean_error(tried.candidates.index((advice.correction, advice.strength))))
    return " Much is left: a finer quantization would help more." if left >= report.DAMAGE else ""


def _gain(tried: Trial) -> str:
    """What the advised correction did on the held-out runs, to the measure that it was advised for."""
    advice = tried.advice()
    index = tried.candidates.index((advice.correction, advice.strength))
    what, before, after = "the error of the final latent", tried.mean_error(0), tried.mean_error(index)
    if advice.error > 1.0 - CLEAR:
        what, before, after = "the shift of colours and contrast", tried.mean_distance(0), tried.mean_distance(index)
    before, after = math.sqrt(before), math.sqrt(after)
    less = percent(1.0 - after / before)
    return f"'{advice.correction}' lowers {what} by {less}, from {percent(before)} to {percent(after)}"
