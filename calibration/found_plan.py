"""A precision plan that a calibration found: what was measured, what was chosen, and what it costs (METHODS.md 4.6)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..core.precision_plan import Candidate, Exemption, PrecisionPlan
from .text import is_number, percent, printable, strict_json

FIELD = "precision_plan"  # in the metadata
MOST_EXEMPTIONS, MOST_LAYERS, MOST_NAME = 1000, 20_000, 400
MOST_SIGMA, MOST_GAIN = 1e9, 1e9


@dataclass(frozen=True)
class FoundPlan:
    """What a calibration that was given a budget found.

    Attributes:
        plan: what runs with unrounded activations under every correction of these statistics.
        budget: share of the rounded layers' multiply-adds that was allowed, above 0 to 1. share: what the plan takes.
        measured: what was tried alone, and its gain: how much lower the final latent's squared error was, as a share of
            the error without it.
    Raises:
        ValueError: the plan is empty, or a number cannot be.
    """

    plan: PrecisionPlan
    budget: float
    share: float
    measured: tuple[Candidate, ...] = ()

    def __post_init__(self) -> None:
        fault = self._fault()
        if fault:
            raise ValueError(f"FoundPlan: {fault}; calibrate again.")

    def _fault(self) -> str | None:
        exemptions = [*self.plan.exemptions, *(each.exemption for each in self.measured)]
        if not self.plan.exemptions:
            return "the plan is empty"
        if len(exemptions) > MOST_EXEMPTIONS:
            return f"it has {len(exemptions)} entries, more than {MOST_EXEMPTIONS}"
        if not (is_number(self.budget, 0.0, 1.0) and is_number(self.share, 0.0, 1.0) and self.budget > 0.0):
            return f"budget is {self.budget!r:.40} and share {self.share!r:.40}, not shares of 0 to 1"
        for each in self.measured:
            if not (is_number(each.gain, -MOST_GAIN, MOST_GAIN) and is_number(each.standard_error, 0.0, MOST_GAIN)):
                return f"a gain is {each.gain!r:.40}, which cannot be"
        return next((fault for fault in map(_exemption_fault, exemptions) if fault), None)

    def describe(self) -> str:
        """ "3 ranges of steps and 12 layers with unrounded activations, 9.8 % of the rounded layers' multiply-adds"."""
        ranges = sum(each.layers is None for each in self.plan.exemptions)
        layers = len({name for each in self.plan.exemptions for name in each.layers or ()})
        parts = [f"{ranges} range{'s' * (ranges > 1)} of steps"] * (ranges > 0)
        parts += [f"{layers} layer{'s' * (layers > 1)}"] * (layers > 0)
        return f"{' and '.join(parts)} with unrounded activations, {percent(self.share)} of the rounded layers' multiply-adds"

    def table(self) -> list[str]:
        """Lines of text: what each step range and each group of layers gained alone, and which were chosen."""
        lines = [
            "",
            f"precision plan, budget {percent(self.budget)}: the final latent's squared error with each alone",
        ]
        for each in self.measured:
            mark = "*" if each.exemption in self.plan.exemptions else " "
            lines.append(f"{mark} {-each.gain:+8.1%} (+-{each.standard_error:.1%})  {_named(each.exemption)}")
        return [*lines, f"* chosen: {self.describe()}"]

    def to_text(self) -> str:
        measured = [
            {"exemption": one, "gain": each.gain, "standard_error": each.standard_error}
            for one, each in zip(_listed([c.exemption for c in self.measured]), self.measured, strict=True)
        ]
        parts = {"plan": self.plan.to_list(), "budget": self.budget, "share": self.share, "measured": measured}
        return json.dumps(parts)

    @classmethod
    def from_text(cls, text: str) -> FoundPlan:
        """The inverse. ValueError if it is no such text."""
        try:
            parts = strict_json(text)
            measured = tuple(_candidate(each) for each in parts["measured"])
            plan = PrecisionPlan.from_list(parts["plan"])
            budget, share = parts["budget"], parts["share"]
        except (KeyError, TypeError, ValueError, OverflowError) as fault:
            raise ValueError(f"FoundPlan: its text cannot be read ({printable(fault)}); calibrate again.") from fault
        return cls(plan, budget, share, measured)


def merged(parts: Sequence[FoundPlan | None]) -> FoundPlan | None:
    """The plan that all parts have in common, with the first one's measurements.

    Raises:
        ValueError: the plans differ, and with them what the statistics are about.
    """
    plans = {None if part is None else part.plan for part in parts}
    if len(plans) > 1:
        raise ValueError("their precision plans differ; merge calibrations without a budget, or with one plan.")
    return parts[0]


def _listed(exemptions: Sequence[Exemption]) -> list[dict[str, Any]]:
    return PrecisionPlan(tuple(exemptions)).to_list()


def _candidate(listed: Mapping[str, Any]) -> Candidate:
    (exemption,) = PrecisionPlan.from_list([listed["exemption"]]).exemptions
    return Candidate(exemption, listed["gain"], listed["standard_error"])


def _exemption_fault(exemption: Exemption) -> str | None:
    if not is_number(exemption.sigma_end, 0.0, MOST_SIGMA):
        return f"a noise level is {exemption.sigma_end!r:.40}, which cannot be"
    names = exemption.layers or ()
    if len(names) > MOST_LAYERS:
        return f"an entry names {len(names)} layers, more than {MOST_LAYERS}"
    odd = next((name for name in names if not name or len(name) > MOST_NAME or not name.isprintable()), None)
    return None if odd is None else f"{printable(odd, 80)!r} is the name of no layer"


def _named(exemption: Exemption) -> str:
    """ "sigma 14.6 to 8.1", "blocks.0.attn.qkv to blocks.1.mlp.fc2 (6 layers)"."""
    if exemption.layers is None:
        high = "the start" if exemption.sigma_start == float("inf") else f"sigma {exemption.sigma_start:.4g}"
        return f"{high} to sigma {exemption.sigma_end:.4g}"
    first, last = exemption.layers[0], exemption.layers[-1]
    if first == last:
        return printable(first, 80)
    return f"{printable(first, 80)} to {printable(last, 80)} ({len(exemption.layers)} layers)"
