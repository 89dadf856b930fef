"""The table of files in ComfyUI's own quantized formats."""

from __future__ import annotations

import math
from functools import partial

from . import files
from .formats import NumberFormat
from .quantization import ADVISED, PLAIN, name
from .quantization_report import HARM, NEAR
from .table import Part, mean, tabulate, times

Row = tuple[NumberFormat, str]  # format and correction


def tables(part: Part) -> dict[str, str]:
    """Factors against the uncorrected file, seed by seed; of the file itself, how far its predictions are off."""
    rows = [(form, method) for form in files.FORMATS for method in (PLAIN, *files.CORRECTED)]
    columns = [
        (f"{label} to full precision", partial(_cell, part, measure=measure)) for measure, label in NEAR.items()
    ]
    return {
        "Files": tabulate(
            [row for row in rows if _name(row) in part],
            ("format", lambda row: row[0].name),
            ("correction", lambda row: "none" if row[1] == PLAIN else row[1]),
            ("error", lambda row: f"{mean(part, _name(row), 'error')} %" if row[1] == PLAIN else ""),
            *columns,
            ("accuracy, %", lambda row: mean(part, _name(row), "accuracy")),
        )
    }


def _name(row: Row) -> str:
    form, method = row
    return name(files.SETTING, form, method)


def _cell(part: Part, row: Row, measure: str) -> str:
    form, method = row
    if method == PLAIN:
        return mean(part, _name(row), measure)
    change = part.log_change(_name(row), _name((form, PLAIN)), measure)
    harmful = method == ADVISED and math.exp(change.mean) > HARM
    return times(change) + (f" (above {HARM:g})" if harmful else "")
