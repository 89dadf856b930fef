"""The table of colour, composition and grain."""

from __future__ import annotations

from functools import partial

from . import halves
from .quantization import PLAIN, name
from .table import Part, number, tabulate, times

LABELS = {"error": "error", "colour": "colour", "composition": "composition", "grain_off": "grain"}


def tables(part: Part) -> dict[str, str]:
    """Means over posters and seeds in percent; factors against no correction, seed by seed."""
    columns = []
    for measure, label in LABELS.items():
        columns.append((f"{label}, %", partial(_percent, part, measure=measure)))
        columns.append(("change", partial(_change, part, measure=measure)))
    known = [method for method in halves.SHOWN if _name(method) in part]
    return {"Halves": tabulate(known, ("correction", lambda method: "none" if method == PLAIN else method), *columns)}


def _name(method: str) -> str:
    return name(halves.SETTING, halves.FORM, method)


def _percent(part: Part, method: str, measure: str) -> str:
    found = part.mean(_name(method), measure)
    return number(100 * found.mean, 100 * found.error)


def _change(part: Part, method: str, measure: str) -> str:
    return "" if method == PLAIN else times(part.log_change(_name(method), _name(PLAIN), measure))
