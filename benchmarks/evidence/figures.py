"""The report's plots, on a light ground of their own: they read on white pages and dark ones."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np

from . import quantization as q
from . import referee, referee_parts, referee_report, samg, samg_report
from .formats import HEAVY, MILD, NumberFormat
from .paired_sampler import NOISE
from .quantization_report import TITLES, Quantized
from .table import SPACES, Part

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axis import Axis
from matplotlib.ticker import FixedLocator, NullFormatter

PAPER, INK, GRID = "#faf9f6", "#1c1c1e", "#d9d6cf"
RULES = {  # colour, marker, line, name
    "CFG": ("#1c1c1e", "o", "-", "plain CFG"),
    "minmax": ("#c2410c", "s", "-", "SAMG minmax"),
    "quantile": ("#0369a1", "D", "-", "SAMG quantile"),
    "bound": ("#7e22ce", "^", "--", "SAMG quantile, bound"),
    "shuffled": ("#737373", "x", "none", "control: shuffled"),
    "swapped": ("#b91c1c", "+", "none", "control: swapped"),
    "same mean": ("#4d7c0f", "1", "none", "control: same mean"),
    "same norm": ("#a16207", "2", "none", "control: same norm"),
}
CORRECTIONS = {
    q.DRIFT: ("#0369a1", "o"),
    q.PAPER: ("#c2410c", "s"),
    q.GAIN: ("#a16207", "^"),
    q.MOMENTS: ("#4d7c0f", "D"),
    q.BOTH: ("#7e22ce", "x"),
    q.LAYERS: ("#b91c1c", "P"),
    q.LAYERS_AND_MOMENTS: ("#1c1c1e", "*"),
}
KINDS = {  # colour, marker
    "nodes of this pack": (referee.OURS, "#c2410c", "s"),
    "nodes of ComfyUI": (referee.PEERS, "#0369a1", "o"),
}
NUMBERED = (1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0)
DISTANCES = (4, 6, 8, 10, 15, 20, 30, 40, 60, 100, 150)
FACTORS = (0.25, 0.35, 0.5, 0.7, 1, 1.4, 2, 2.8, 4, 5.6, 8)


def frontier(part: Part, path: Path) -> None:
    """Frechet distance against accuracy and against margin: lower and further right is better."""
    figure, axes = plt.subplots(1, 2, figsize=(11.5, 4.8), facecolor=PAPER, layout="constrained", sharey=True)
    labels = {"accuracy": "accuracy, %", "margin": "margin of the class asked for, logits"}
    style = {"markersize": 5, "linewidth": 1.3, "elinewidth": 0.8, "capsize": 2}
    for axis, (measure, label) in zip(axes, labels.items(), strict=True):
        factor = 100 if measure == "accuracy" else 1
        for variant, (colour, marker, line, title) in RULES.items():
            rows = samg_report.rows_of(part, variant)
            points = [(part.mean(row, measure), part.mean(row, "fd_features")) for row in rows]
            values = [(factor * x.mean, y.mean, factor * x.error, y.error) for x, y in points]
            x, y, x_error, y_error = zip(*values, strict=True)
            kind = {"color": colour, "marker": marker, "linestyle": line, "label": title}
            axis.errorbar(x, y, xerr=x_error, yerr=y_error, **kind, **style)
        axis.set(xlabel=label, yscale="log")
        _format(axis, axis.yaxis, DISTANCES)
    axes[0].set_xscale("function", functions=(_stretch, _unstretch))
    axes[0].set_xticks([60, 70, 80, 90, 95, 98, 99, 100])
    axes[0].set_xlim(100 * min(part.mean(row, "accuracy").mean for row in part.names) - 8, 100.3)
    axes[0].set_ylabel("Frechet distance to real pictures (features)")
    for scale in NUMBERED:
        place = [part.mean(samg.name("CFG", scale), measure).mean for measure in ("margin", "fd_features")]
        axes[1].annotate(f"{scale:g}", place, (5, -11), textcoords="offset points", color=INK, fontsize=8)
    axes[1].legend(fontsize=8, facecolor=PAPER, edgecolor=GRID)
    _save(
        figure, path, "Lower is closer to real pictures, right is truer to the class. Numbers: CFG's scale.", dpi=110
    )


def _stretch(percent: np.ndarray) -> np.ndarray:
    """Stretches the accuracies near 100 %."""
    return -np.log(np.maximum(101.0 - percent, 1e-3))


def _unstretch(x: np.ndarray) -> np.ndarray:
    return 101.0 - np.exp(-x)


def corrections(found: Quantized, path: Path) -> None:
    """By format: each correction's distance to full precision as a multiple of plain quantization's, with its standard error."""
    settings = found.settings()

    def measured(form: NumberFormat, method: str) -> bool:  # the short table lacks rows
        return bool(found.changes(found.grid(form), method, q.PLAIN, "mse"))

    forms = [form for form in (*HEAVY, *MILD, NOISE) if any(measured(form, method) for method in CORRECTIONS)]
    styles = {m: style for m, style in CORRECTIONS.items() if any(measured(form, m) for form in forms)}
    size = (4.1 * len(settings), 1.6 + 0.63 * max(len(forms), 4))
    figure, axes = plt.subplots(
        2, len(settings), figsize=size, facecolor=PAPER, layout="constrained", sharey=True, sharex="row", squeeze=False
    )
    for row, (measure, label) in enumerate({"full_features": "FD features", "mse": "MSE"}.items()):
        for axis, setting in zip(axes[row], settings, strict=True):
            for height, form in enumerate(reversed(forms)):
                for offset, (method, (colour, marker)) in enumerate(styles.items()):
                    y = height + 0.11 * ((len(styles) - 1) / 2 - offset)
                    for change in found.changes([(setting, form)], method, q.PLAIN, measure):
                        ends = [math.exp(change.mean + side * change.error) for side in (-1, 1)]
                        axis.plot(ends, [y, y], color=colour, linewidth=1)
                        axis.plot(math.exp(change.mean), y, color=colour, marker=marker, markersize=5)
            axis.axvline(1.0, color=INK, linewidth=0.8)
            axis.set(xscale="log", xlabel=f"{label} to full precision, quantized = 1", ylim=(-0.6, len(forms) - 0.4))
            axis.set_yticks(range(len(forms)), [form.name for form in reversed(forms)])
            _format(axis, axis.xaxis, FACTORS)
            if row == 0:
                axis.set_title(TITLES[setting.kind, setting.solver], fontsize=10)
    handles = [plt.Line2D([], [], color=c, marker=m, linestyle="none") for c, m in styles.values()]
    figure.legend(handles, list(styles), loc="outside lower center", ncols=len(styles), fontsize=9, frameon=False)
    _save(figure, path, "Left of 1: nearer to full precision than the uncorrected quantized model", dpi=100)


def equal_strength(part: Part, path: Path) -> None:
    """Both distances against contrast: lower is better, and below the curve is better at equal contrast."""
    figure, axes = plt.subplots(1, 2, figsize=(13, 6), facecolor=PAPER, layout="constrained")
    for axis, (measure, title) in zip(axes, SPACES.items(), strict=True):

        def place(row: str, measure: str = measure) -> list[float]:
            return [part.mean(row, key).mean for key in ("contrast", measure)]

        curve = [place(row) for row in referee_report.curve(part, referee.Row(referee.PLAIN, referee_parts.GUIDANCE))]
        axis.plot(*zip(*curve, strict=True), color=INK, marker=".", linewidth=1.3, label="plain CFG")
        for cfg, point in zip(referee_parts.LONG_CURVE, curve, strict=True):
            axis.annotate(f"{cfg:g}", point, (6, -8), textcoords="offset points", color=INK, fontsize=7)
        for label, (rules, colour, marker) in KINDS.items():
            rows = {rule: referee.Row(rule, referee_parts.STRONG).name for rule in rules}
            places = {rule: place(row) for rule, row in rows.items() if row in part}
            axis.plot(*zip(*places.values(), strict=True), color=colour, marker=marker, linestyle="none", label=label)
            for rule, point in places.items():
                axis.annotate(rule, point, (-6, 2), textcoords="offset points", color=colour, fontsize=7, ha="right")
        axis.set(xlabel="contrast of the pictures (standard deviation)", ylabel=title, yscale="log", xlim=(0.25, 0.68))
        _format(axis, axis.yaxis, DISTANCES)
    axes[0].legend(fontsize=8, facecolor=PAPER, edgecolor=GRID)
    title = (
        f"Every rule at cfg {referee_parts.STRONG:g} and plain guidance: below the curve is better at equal contrast"
    )
    _save(figure, path, title, dpi=100)


def _format(axis: plt.Axes, log: Axis, ticks: Sequence[float]) -> None:
    """log: the logarithmic one of its two."""
    axis.set_facecolor(PAPER)
    log.set_major_locator(FixedLocator(ticks))
    log.set_major_formatter("{x:g}")
    log.set_minor_formatter(NullFormatter())
    axis.grid(color=GRID, linewidth=0.6, which="both")
    axis.set_axisbelow(True)


def _save(figure: plt.Figure, path: Path, title: str, dpi: int) -> None:
    figure.suptitle(title, fontsize=11)
    figure.savefig(path, dpi=dpi, facecolor=PAPER)
    plt.close(figure)
