"""The tables and the figure of docs/DEPTH.md, from the stored rows."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from .depth import CORRECTIONS, FORMATS, GROWTH, PLAIN, name
from .figures import GRID, PAPER, plt
from .formats import NumberFormat
from .metrics import Estimate, estimate
from .table import Part, number, tabulate

SUBJECTS = {"letters": 3, "pictures": 9}  # blocks
COLOURS = dict(zip((form.name for form in FORMATS), ("#c2410c", "#0369a1", "#4d7c0f"), strict=True))
LINES = {"letters": ("--", "s"), "pictures": ("-", "o")}


def part(subject: str) -> str:
    return f"depth-{subject}"


def tables(folder: Path) -> dict[str, str]:
    """Markdown by name."""
    parts = {subject: Part(folder, part(subject)) for subject in SUBJECTS}
    rows = [(subject, form) for form in FORMATS for subject in SUBJECTS]

    def common(row: tuple[str, NumberFormat]) -> list[str]:
        return [row[1].name, f"{row[0]}, {SUBJECTS[row[0]]} blocks"]

    first = [("format", lambda row: common(row)[0]), ("model", lambda row: common(row)[1])]

    def grown(measure: str):
        return lambda row: percent(parts[row[0]].mean(name(row[1], GROWTH), measure.format(SUBJECTS[row[0]])))

    def left(what: str):
        return lambda row: share(parts[row[0]], row[1], what)

    return {
        "growth": tabulate(
            rows,
            *first,
            ("behind the first block", grown("after 1")),
            ("behind the last block", grown("after {}")),
            ("of the output", grown("output")),
            ("output, sum of each block alone", lambda row: percent(summed(parts[row[0]], row[1], SUBJECTS[row[0]]))),
            ("together / sum", lambda row: number(*compounded(parts[row[0]], row[1], SUBJECTS[row[0]])[:2])),
        ),
        "corrections": tabulate(
            rows,
            *first,
            ("error of the latent, plain", lambda row: percent(parts[row[0]].mean(name(row[1], PLAIN), "error"))),
            *[(what, left(what)) for what in CORRECTIONS],
        ),
    }


def percent(value: Estimate) -> str:
    return f"{number(100 * value.mean, 100 * value.error)} %"


def share(found: Part, form: NumberFormat, what: str) -> str:
    """Of the plain error, seed by seed."""
    return percent(ratio(found, form, what))


def ratio(found: Part, form: NumberFormat, what: str) -> Estimate:
    pairs = zip(found.values(name(form, what), "error"), found.values(name(form, PLAIN), "error"), strict=True)
    return estimate([ours / plain for ours, plain in pairs])


def summed(found: Part, form: NumberFormat, blocks: int) -> Estimate:
    """Errors of the output with one block rounded at a time."""
    return estimate(list(_sums(found, form, blocks)))


def compounded(found: Part, form: NumberFormat, blocks: int) -> Estimate:
    """The error of the output with all blocks rounded, by that sum; 1: independent errors that add up."""
    outputs = found.values(name(form, GROWTH), "output")
    return estimate([output / alone for output, alone in zip(outputs, _sums(found, form, blocks), strict=True)])


def _sums(found: Part, form: NumberFormat, blocks: int) -> Iterator[float]:
    by_block = [found.values(name(form, GROWTH), f"alone {i}") for i in range(1, blocks + 1)]
    return map(sum, zip(*by_block, strict=True))


def figure(folder: Path, path: Path) -> None:
    """Errors behind each block, and what the corrections leave of the final latent's."""
    parts = {subject: Part(folder, part(subject)) for subject in SUBJECTS}
    drawn, (inside, ends) = plt.subplots(1, 2, figsize=(12, 4.8), facecolor=PAPER, layout="constrained")
    for subject, found in parts.items():
        line, marker = LINES[subject]
        blocks = range(1, SUBJECTS[subject] + 1)
        for form in FORMATS:
            label = f"{form.name}, {subject}"
            values = [found.mean(name(form, GROWTH), f"after {i}") for i in blocks]
            style = {"color": COLOURS[form.name], "linestyle": line, "marker": marker, "markersize": 4, "label": label}
            inside.errorbar(blocks, [v.mean for v in values], [v.error for v in values], linewidth=1.3, **style)
            shares = [ratio(found, form, what) for what in CORRECTIONS]
            places = range(len(CORRECTIONS) + 1)
            ends.errorbar(places, [1.0, *(v.mean for v in shares)], [0.0, *(v.error for v in shares)], **style)
    inside.set(xlabel="block", ylabel="error of the residual stream / its variance", yscale="log")
    inside.set_xticks(range(1, max(SUBJECTS.values()) + 1))
    ends.set(ylabel="squared error of the final latent, plain = 1", ylim=(0, None))
    ends.set_xticks(range(len(CORRECTIONS) + 1), ["plain", *CORRECTIONS])
    for axis in (inside, ends):
        axis.set_facecolor(PAPER)
        axis.grid(color=GRID, linewidth=0.6)
        axis.set_axisbelow(True)
    inside.legend(fontsize=8, facecolor=PAPER, edgecolor=GRID)
    drawn.suptitle("Rounding errors behind each block, and what the corrections leave of the sample's", fontsize=11)
    drawn.savefig(path, dpi=100, facecolor=PAPER)
    plt.close(drawn)
