"""Tables of calibrations from chosen runs."""

from __future__ import annotations

from functools import partial

from . import subsets as s
from .formats import NumberFormat
from .quantization import PLAIN, name
from .quantization_report import NEAR, marked
from .table import Part, tabulate, times

Group = tuple[NumberFormat, str, str]  # format, correction, how runs are chosen


def tables(part: Part) -> dict[str, str]:
    groups = [(form, correction, order) for form in s.FORMATS for correction in s.CORRECTIONS for order in s.ORDERS]
    first = (
        ("format", lambda group: group[0].name),
        ("correction", lambda group: group[1]),
        ("runs", lambda group: group[2]),
    )
    factors = [(f"K = {size}", partial(_factors, part, size=size)) for size in s.SIZES]
    against = [(f"{label}, to random", partial(_against, part, measure=measure)) for measure, label in NEAR.items()]
    largest = s.SIZES[-1]
    known = [group for group in groups if _row(group, largest) in part]
    return {
        "Subsets of runs": tabulate(known, *first, *factors),
        "Subsets of runs, against random": tabulate(
            [group for group in known if group[2] != s.RANDOM], *first, *against
        ),
    }


def _row(group: Group, size: int) -> str:
    form, correction, order = group
    return name(s.SETTING, form, s.method(correction, size, order))


def _factors(part: Part, group: Group, size: int) -> str:
    """Against no correction, in the order of NEAR."""
    row, plain = _row(group, size), name(s.SETTING, group[0], PLAIN)
    return ", ".join(marked(part.log_change(row, plain, measure)) for measure in NEAR) if row in part else ""


def _against(part: Part, group: Group, measure: str) -> str:
    """From as many runs."""
    form, correction, _ = group
    return times(
        part.log_change(*(_row(each, s.SIZES[-1]) for each in (group, (form, correction, s.RANDOM))), measure)
    )
