"""The report: docs/RESULTS.md is written by hand, and its tables and verdicts come from the stored results.

A table stands between `<!-- table: NAME -->` and `<!-- end -->`; `updated` replaces what is between them.
"""

from __future__ import annotations

import re
import statistics
from functools import partial
from pathlib import Path

from . import (
    files,
    files_report,
    halves,
    halves_report,
    posters,
    posters_report,
    precision_report,
    qsilk_report,
    quantization,
    quantization_report,
    samg_report,
    subjects,
    subsets,
    subsets_report,
)
from .table import TITLES, Part, markdown, tabulate

QUANTIZED = tuple(f"{part}-{kind}" for part in quantization.PARTS for kind in subjects.SETTINGS)
PARTS = (
    "samg",
    "qsilk",
    "real",
    "float32",
    *QUANTIZED,
    posters.KIND,
    *precision_report.PARTS,
    subsets.PART,
    files.PART,
    halves.PART,
)
BLOCK = re.compile(r"<!-- table: (.+?) -->\n.*?<!-- end -->", re.DOTALL)


def tables(folder: Path) -> dict[str, str]:
    """Markdown by name, of the results stored in `folder`; those without a row are left out.

    ValueError where there is too little for a report.
    """
    parts = {name: Part(folder, name) for name in PARTS}
    for name in ("samg", "qsilk", "real"):
        if not parts[name].names or parts[name].seeds < 2:
            raise ValueError(
                f"evidence: {folder} has {parts[name].seeds} seeds of the part {name}; a report needs 2 or more of each: "
                "run the command without --part and --seeds."
            )
    quantized = quantization_report.Quantized(parts)
    claims = [*samg_report.findings(parts["samg"]), *qsilk_report.findings(parts["qsilk"], parts["real"])]
    questions = [*quantization_report.findings(quantized), *posters_report.findings(parts[posters.KIND])]
    found = {
        "Runs": _runs(parts),
        "Claims": _verdicts("found earlier", claims),
        "Questions": _verdicts("question", questions) if questions else "",
        **samg_report.tables(parts["samg"]),
        **qsilk_report.tables(parts["qsilk"], parts["real"]),
        **quantization_report.tables(quantized),
        **posters_report.tables(parts),
        **precision_report.tables(parts),
        **subsets_report.tables(parts[subsets.PART]),
        **files_report.tables(parts[files.PART]),
        **halves_report.tables(parts[halves.PART]),
        "float32": _precision(parts),
    }
    return {name: table for name, table in found.items() if table}


def updated(document: str, tables: dict[str, str]) -> str:
    """The document with these tables. ValueError unless it has a place for each and no other."""
    places = BLOCK.findall(document)
    if sorted(places) != sorted(tables):
        unlike = sorted({*places} ^ {*tables}) or ["one name twice"]
        raise ValueError(f"evidence: the report's places and the tables differ: {', '.join(unlike)}.")
    return BLOCK.sub(lambda match: f"<!-- table: {match[1]} -->\n\n{tables[match[1]]}\n\n<!-- end -->", document)


def plain(tables: dict[str, str], command: str) -> str:
    """A report of the tables alone, for results that git does not keep."""
    sections = [f"## {name}\n\n{table}" for name, table in tables.items()]
    return "\n\n".join([f"# `{command}`", "docs/RESULTS.md explains the tables.", *sections]) + "\n"


def _verdicts(first: str, rows: list[tuple[str, str, str]]) -> str:
    return markdown([first, "here", "verdict"], [[what, here, f"**{word}**"] for what, here, word in rows])


def _runs(parts: dict[str, Part]) -> str:
    """What the stored results were made with."""

    def about(key: str, name: str) -> str:
        return ", ".join(sorted({str(seed["about"][key]) for seed in parts[name].stored}))

    def minutes(name: str) -> str:
        part = parts[name]
        rows = [row for row in part.names if part.measured(row, "seconds")]
        return f"{sum(statistics.median(part.values(row, 'seconds')) for row in rows) * part.seeds / 60:.0f}"

    keys = ("samples", "precision", "torch", "comfyui", "date", "machine")
    return tabulate(
        [name for name, part in parts.items() if part.names],
        ("part", str),
        ("rows", lambda name: str(len(parts[name].names))),
        ("seeds", lambda name: str(parts[name].seeds)),
        ("minutes of one core", minutes),
        *[(key, partial(about, key)) for key in keys],
    )


def _precision(parts: dict[str, Part]) -> str:
    """bfloat16 against float32, seed by seed: in percent, of the accuracy in points."""
    part = parts["float32"]

    def cell(measure: str, row: str) -> str:
        source = parts["samg"] if row in parts["samg"] else parts["qsilk"]
        pairs = zip(source.values(row, measure), part.values(row, measure), strict=False)
        points = measure == "accuracy"
        return ", ".join(f"{100 * (half - full if points else half / full - 1):+.1f}" for half, full in pairs)

    titles = {m: TITLES[m] if "%" in TITLES[m] else f"{TITLES[m]}, %" for m in TITLES} | {
        "spread": "std, %",
        "accuracy": "accuracy, points",
    }
    measures = ("fd_features", "fd_pixels", "margin", "saturation", "spread", "accuracy")
    return tabulate(part.names, ("row", str), *[(titles[m], partial(cell, m)) for m in measures])
