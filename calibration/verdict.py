"""What a calibration comes to, in one line: whether a correction helps, by how much, and what to do next."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from enum import Enum

from . import report
from .advice import CLEAR, advise
from .correctors import CORRECTORS
from .statistics import QDriftStatistics
from .text import percent
from .trial import Trial
from .trial_text import seen_lines


class Outcome(Enum):
    HELPS = "Helps"
    NOTHING = "Nothing to repair"
    CANNOT = "Cannot be repaired"
    UNTRIED = "Not tried"


@dataclass(frozen=True)
class Verdict:
    """What to tell.

    Attributes:
        amount: one clause with the figures. next_step: one sentence, or two.
        seen: what the advised correction does to colours, grain and composition, a line each; each begins with "+",
            "=" or a minus sign. Empty without an advice.
        cost: of the advised correction in each step, one sentence; empty without an advice.
    """

    outcome: Outcome
    amount: str
    next_step: str
    seen: tuple[str, ...] = ()
    cost: str = ""

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
        return Verdict(
            Outcome.HELPS,
            _gain(tried),
            "Next: connect stats to Quantization Fix and leave it at 'advised'." + _left(tried),
            tuple(seen_lines(tried)),
            _cost(statistics, tried.advice().correction),
        )
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
        f"{_why_none(tried)}; the final latent stays {final} off",
        "Take a finer quantization of the model, or use it as it is.",
    )


def _why_none(tried: Trial) -> str:
    """Why nothing is advised."""
    harmful = advise(tried.candidates, tried.error, tried.distance, None)
    if tried.seen is None or not harmful.correction:
        return "no correction helps in every held-out run"
    worse = tried.seen.worse(tried.candidates.index((harmful.correction, harmful.strength)))
    return f"'{harmful.correction}' lowers the error but makes {' and '.join(worse)} clearly worse"


def _left(tried: Trial) -> str:
    """A further sentence where much is left."""
    advice = tried.advice()
    left = math.sqrt(tried.mean_error(tried.candidates.index((advice.correction, advice.strength))))
    return " Much is left: a finer quantization would help more." if left >= report.DAMAGE else ""


def _gain(tried: Trial) -> str:
    """What the advised correction did on the held-out runs, to the measure that it was advised for."""
    advice = tried.advice()
    index = tried.candidates.index((advice.correction, advice.strength))
    what, before, after = "the final latent's error", tried.mean_error(0), tried.mean_error(index)
    if advice.error > 1.0 - CLEAR:
        what, before, after = "the shift of colours and contrast", tried.mean_distance(0), tried.mean_distance(index)
    before, after = math.sqrt(before), math.sqrt(after)
    less = percent(1.0 - after / before)
    return f"{_named(advice.correction)} takes away {less} of {what}: {percent(before)} to {percent(after)}"


def _named(correction: str) -> str:
    """ "'layers' (each layer's mean error, inside the network)"."""
    words = CORRECTORS[correction].words
    return f"'{correction}' ({words})" if words else f"'{correction}'"


def _cost(statistics: QDriftStatistics, correction: str) -> str:
    """Counted, not timed: a time would differ from machine to machine, and between two runs of one calibration."""
    kind, parts = CORRECTORS[correction], []
    if kind.layers and statistics.layers is not None:
        parts.append(f"an addition at {len(statistics.layers.places)} places inside the network")
    if kind.drift or kind.maps is not None:
        parts.append("a scale and a shift of the latent")
    each = [f"Costs in each step: {' and '.join(parts)}; no further model call."] if parts else []
    if statistics.plan is not None:
        each.append(f"Precision plan: {statistics.plan.describe()}.")
    return " ".join(each)
