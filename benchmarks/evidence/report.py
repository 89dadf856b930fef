"""The report: RESULTS.template.md with the tables and numbers that stored results give.

The template is written by hand. `{{name}}` stands for a table, a number, or nothing under a condition. Where it has no
value, as the short table lacks rows, its paragraph is left out, and so is a section all of whose tables are.
"""

from __future__ import annotations

import os
import re
import statistics
from collections.abc import Iterable, Mapping
from functools import partial
from itertools import pairwise
from pathlib import Path

from . import posters, posters_report, qsilk_report, quantization, quantization_report, reference, samg_report
from .table import TITLES, Part, markdown, tabulate

QUANTIZED = tuple(f"{part}-{kind}" for part in quantization.PARTS for kind in quantization.SETTINGS)
PARTS = ("samg", "qsilk", "real", "float32", *QUANTIZED, posters.KIND)
TEMPLATE = Path(__file__).with_name("RESULTS.template.md")
PLACE = re.compile(r"\{\{([^}]*)\}\}")


def text(folder: Path, images: str, command: str) -> str:
    """Markdown. folder: of the stored numbers; images: path of the figures' folder from the report; command: as typed."""
    check(folder)
    parts = {name: Part(folder, name) for name in PARTS}
    found = {"command": command, "images": images, **_numbers(parts), **_tables(parts)}
    return filled(TEMPLATE.read_text(encoding="utf-8"), found)


def check(folder: Path) -> None:
    """ValueError where there is too little for a report."""
    for name in ("samg", "qsilk", "real"):
        part = Part(folder, name)
        if not part.names or part.seeds < 2:
            raise ValueError(
                f"evidence: {folder} has {part.seeds} seeds of the part {name}; a report needs 2 or more of each: run the "
                "command without --part and --seeds."
            )


def filled(template: str, found: Mapping[str, str | None]) -> str:
    """KeyError for a name that has no entry in `found`. None there: no value."""
    blocks = []
    for block in template.strip().split("\n\n"):
        names = PLACE.findall(block)
        if all(found[name] is not None for name in names):
            blocks.append((PLACE.sub(lambda match: found[match[1]], block), False))
        elif block == f"{{{{{names[0]}}}}}":  # a table
            blocks.append(("", True))
    return "\n\n".join(text for text in _without_empty_sections(blocks) if text) + "\n"


def _without_empty_sections(blocks: list[tuple[str, bool]]) -> Iterable[str]:
    """blocks: text, and whether it is a table that is not there."""
    starts = [i for i, (text, _) in enumerate(blocks) if text.startswith("#")] + [len(blocks)]
    yield from (text for text, _ in blocks[: starts[0]])
    for start, end in pairwise(starts):
        section = blocks[start:end]
        if not any(absent for _, absent in section) or any(text.startswith("| ") for text, _ in section):
            yield from (text for text, _ in section)


def relative(folder: Path, report: Path) -> str:
    return Path(os.path.relpath(folder, report.parent)).as_posix()


def _tables(parts: dict[str, Part]) -> dict[str, str | None]:
    """By name, None if it has no row."""
    quantized = quantization_report.Quantized(parts)
    claims = [*samg_report.findings(parts["samg"]), *qsilk_report.findings(parts["qsilk"], parts["real"])]
    questions = [*quantization_report.findings(quantized), *posters_report.findings(parts[posters.KIND])]
    found = {
        "claims": _findings("found earlier", claims),
        "questions": _findings("question", questions) if questions else "",
        "overall": quantization_report.overall(quantized),
        **samg_report.tables(parts["samg"]),
        **qsilk_report.tables(parts["qsilk"], parts["real"]),
        **quantization_report.tables(quantized),
        **posters_report.tables(parts),
        "float32": _precision(parts),
    }
    return {name: table or None for name, table in found.items()}


def _findings(first: str, rows: list[tuple[str, str, str]]) -> str:
    return markdown([first, "here", "verdict"], [[what, here, f"**{word}**"] for what, here, word in rows])


def _numbers(parts: dict[str, Part]) -> dict[str, str | None]:
    stored = [seed["about"] for part in parts.values() for seed in part.stored]
    dates = sorted({about["date"] for about in stored})
    main = parts["samg"].stored[0]["about"]
    timed = [(part, row) for part in parts.values() for row in part.names if part.measured(row, "seconds")]
    seconds = sum(
        statistics.median(part.values(row, "seconds")) * part.seeds
        for part, row in timed
        if part is not parts["float32"]
    )
    floor = {m: parts["real"].mean(reference.UNTOUCHED, m).mean for m in ("fd_features", "fd_pixels", "accuracy")}
    whole = posters_report.has_largest(parts[posters.KIND])
    found = {
        **{name: str(main[name]) for name in ("samples", "torch", "comfyui", "precision")},
        "dates": " to ".join(sorted({dates[0], dates[-1]})),
        "machines": "; ".join(sorted({about["machine"] for about in stored})),
        "minutes": f"{seconds / 60:.0f}",
        "floor features": f"{floor['fd_features']:.1f}",
        "floor pixels": f"{floor['fd_pixels']:.2f}",
        "floor accuracy": f"{100 * floor['accuracy']:.1f}",
        "full": "" if whole else None,
        "short": None if whole else "",
    }
    keys = {"samg": "samg", "quantized": "quantized-eps", "transfer": "transfer-flow", "posters": "posters"}
    for name, key in {**keys, "float32": "float32"}.items():
        part = parts[key]
        found[f"{name} seeds"] = str(part.seeds) if part.names else None
        found[f"{name} samples"] = str(part.stored[0]["about"]["samples"]) if part.names else None
    return found


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
