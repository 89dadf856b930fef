"""The plot and the contact sheets of the sections on quantized models."""

from __future__ import annotations

import math
from pathlib import Path

from matplotlib import pyplot as plt
from matplotlib.ticker import FixedLocator, NullFormatter

from gimbal_demo.sheet import contact_sheet

from . import quantization as q
from .figures import COLUMNS, GRID, PAPER, as_images, save
from .formats import HEAVY, MILD
from .quantization_report import TITLES, Quantized

STYLES = {
    q.DRIFT: ("#0369a1", "o"),
    q.PAPER: ("#c2410c", "s"),
    q.GAIN: ("#a16207", "^"),
    q.MOMENTS: ("#4d7c0f", "D"),
    q.BOTH: ("#7e22ce", "x"),
}
TICKS = (0.25, 0.35, 0.5, 0.7, 1, 1.4, 2, 2.8, 4, 5.6, 8)
MEASURES = {"full_features": "FD features", "mse": "MSE"}
SHOWN = (q.DRIFT, q.MOMENTS, q.MANY_MOMENTS)  # in the sheets, below full precision and plain quantization
SHEET_FORMAT = HEAVY[0]


def plot(found: Quantized, path: Path) -> None:
    """By format: each correction's distance to full precision as a multiple of plain quantization's, with its standard error."""
    settings = found.settings()
    forms, styles = _present(found)
    size = (4.1 * len(settings), 1.6 + 0.63 * max(len(forms), 4))
    figure, axes = plt.subplots(
        2, len(settings), figsize=size, facecolor=PAPER, layout="constrained", sharey=True, sharex="row", squeeze=False
    )
    for row, (measure, label) in enumerate(MEASURES.items()):
        for axis, setting in zip(axes[row], settings, strict=True):
            for height, form in enumerate(reversed(forms)):
                for offset, (method, (colour, marker)) in enumerate(styles.items()):
                    y = height + 0.14 * ((len(styles) - 1) / 2 - offset)
                    for change in found.changes([(setting, form)], method, q.PLAIN, measure):
                        ends = [math.exp(change.mean + side * change.error) for side in (-1, 1)]
                        axis.plot(ends, [y, y], color=colour, linewidth=1)
                        axis.plot(math.exp(change.mean), y, color=colour, marker=marker, markersize=5)
            axis.axvline(1.0, color="#1c1c1e", linewidth=0.8)
            axis.set(xscale="log", facecolor=PAPER, xlabel=f"{label} to full precision, quantized = 1")
            axis.xaxis.set_major_locator(FixedLocator(TICKS))
            axis.xaxis.set_major_formatter("{x:g}")
            axis.xaxis.set_minor_formatter(NullFormatter())
            axis.set_ylim(-0.6, len(forms) - 0.4)
            axis.set_yticks(range(len(forms)), [form.name for form in reversed(forms)])
            axis.grid(color=GRID, linewidth=0.6, which="both")
            axis.set_axisbelow(True)
            if row == 0:
                axis.set_title(TITLES[setting.kind, setting.solver], fontsize=10)
    handles = [plt.Line2D([], [], color=c, marker=m, linestyle="none") for c, m in styles.values()]
    figure.legend(handles, list(styles), loc="outside lower center", ncols=len(styles), fontsize=9, frameon=False)
    figure.suptitle("Left of 1: nearer to full precision than the uncorrected quantized model", fontsize=11)
    figure.savefig(path, dpi=100, facecolor=PAPER)
    plt.close(figure)


def _present(found: Quantized) -> tuple[list[q.Format], dict[str, tuple[str, str]]]:
    """Formats and corrections that have a row; the short table lacks some."""

    def rows(form: q.Format, method: str) -> list:
        return found.changes(found.grid([form]), method, q.PLAIN, "mse")

    forms = [form for form in (*HEAVY, *MILD, q.NOISE) if any(rows(form, method) for method in STYLES)]
    styles = {method: style for method, style in STYLES.items() if any(rows(form, method) for form in forms)}
    return forms, styles


def sheet(models: q.Models, path: Path) -> None:
    """Full precision, quantized, corrected: the first samples of seed 0, each class once; Euler."""
    setting = q.SETTINGS[models.full.kind][0]
    trial = q.Trial(models, setting, SHEET_FORMAT, COLUMNS, 0)
    bands = {q.FULL: trial.sample(full=True), SHEET_FORMAT.name: trial.sample()}
    bands |= {f"{SHEET_FORMAT.name} | {method}": q.METHODS[method](None, trial) for method in SHOWN}
    title = f"{TITLES[setting.kind, setting.solver]}: the first {COLUMNS} samples of seed 0 in every row"
    save(contact_sheet([as_images(each) for each in bands.values()], list(bands), title, COLUMNS), path)
