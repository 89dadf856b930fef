"""The report as one picture, drawn by matplotlib where it is installed. No global state: figures are made by hand."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING

import numpy as np
import torch

from . import report, trial_text
from .residual import BINS, LIMIT, Residual
from .statistics import QDriftStatistics
from .trial import Trial

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BLUE, ORANGE, GREY = "#2b6c99", "#c8641e", "#8a8780"
PAPER = "#faf9f6"


def available() -> bool:
    return find_spec("matplotlib") is not None


def picture(statistics: QDriftStatistics, residuals: Sequence[Residual] | None = None) -> np.ndarray:
    """(height, width, 3) uint8. ImportError where there is no matplotlib: ask `available` first.

    The panels: error, V, slope, gain, its stability over the runs, and the shape of the error or its size by the
    signal's.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    shown = report.figures(statistics)
    maps, tried = statistics.state_map(), statistics.trial
    beside = (maps is not None, tried is not None)
    columns = 4 if any(beside) else 3
    figure = Figure(figsize=(13.6 * columns / 3, 8.4), dpi=100, facecolor=PAPER, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    panels = figure.subplots(2, columns)
    for panel in panels.flat:
        panel.set_facecolor("white")
        panel.grid(True, color="#e4e2dc", linewidth=0.8)
        panel.tick_params(labelsize=10)
    steps = np.arange(1, len(shown.sigma) + 1)
    _error(panels[0, 0], steps, shown)
    _bands(panels[0, 1], steps, shown.variance, "V, the error's conditional variance", log=True)
    _bands(panels[0, 2], steps, shown.slope, "slope a = Cov / Var")
    _gains(panels[1, 0], steps, shown)
    _stability(panels[1, 1], steps, shown)
    if residuals:
        _shape(panels[1, 2], residuals)
    else:
        _ratios(panels[1, 2], steps, shown)
    if maps is not None:
        _bands(panels[0, 3], np.arange(1, len(maps.sigma) + 1), maps.scale, "moment matching's scale")
        panels[0, 3].set_xlabel("after step", fontsize=10)
    if tried is not None:
        _trial(panels[1, 3], tried)
    for panel, used in zip(panels[:, 3:].flat, beside, strict=False):
        panel.set_visible(used)
    for panel in panels[:, :3].flat:
        if not panel.get_xlabel():
            _label_steps(panel, steps, shown.sigma.tolist())
    origin = statistics.provenance
    head = f"{origin.quantized_model or 'quantized'} against {origin.full_model or 'full precision'}"
    setting = f"{origin.path}, {origin.solver} {origin.scheduler}, {origin.steps} steps, cfg {origin.cfg:g}, {origin.runs} runs"
    words = [
        *textwrap.wrap(head, 40 * columns)[:2],
        setting,
        *textwrap.wrap(report.verdict(statistics), 50 * columns),
    ]
    figure.suptitle("\n".join(map(_plain, words)), fontsize=12, x=0.01, ha="left", linespacing=1.5)
    canvas.draw()
    pixels: np.ndarray = np.asarray(canvas.buffer_rgba())[..., :3].copy()
    return pixels


def _plain(line: str) -> str:
    return line.replace("$", r"\$")  # matplotlib would read formulas


def _trial(panel: Axes, tried: Trial) -> None:
    names = [trial_text.label(candidate) for candidate in tried.candidates]
    chosen = (tried.advice().correction, tried.advice().strength)
    colours = [
        ORANGE if candidate == chosen else GREY if i == 0 else BLUE for i, candidate in enumerate(tried.candidates)
    ]
    places = range(len(names))
    panel.barh(places, [100 * tried.mean_error(i) ** 0.5 for i in places], color=colours, height=0.6)
    for i, errors in enumerate(tried.error):
        panel.plot([100 * value**0.5 for value in errors], [i] * len(errors), "k|", markersize=9)
    panel.set_yticks(places, names)
    panel.invert_yaxis()
    panel.set_xlabel("%, | each run" + (", orange: advised" if chosen[0] else ", nothing advised"), fontsize=10)
    _title(panel, "held-out runs: error of the final latent")


def _label_steps(panel: Axes, steps: np.ndarray, sigma: list[float]) -> None:
    places = list(range(1, len(steps) + 1, -(-len(steps) // 8)))
    panel.set_xticks(places, [f"{place}\n{sigma[place - 1]:.3g}" for place in places])
    panel.set_xlabel("step, sigma", fontsize=10)


def _title(panel: Axes, words: str) -> None:
    panel.set_title(words, fontsize=11, loc="left")


def _error(panel: Axes, steps: np.ndarray, shown: report.Figures) -> None:
    noise = shown.error * shown.noise_share.sqrt()
    panel.plot(steps, 100 * shown.error, color=BLUE, marker="o", markersize=3, label="all of it")
    panel.plot(steps, 100 * noise, color=ORANGE, marker="o", markersize=3, label="what may act as noise")
    panel.set_ylim(0, 115 * float(shown.error.nan_to_num(posinf=1.0).max()) or 1.0)
    panel.set_ylabel("%", fontsize=10)
    panel.legend(fontsize=9, frameon=False)
    _title(panel, "error, % of the signal")


def _bands(panel: Axes, steps: np.ndarray, values: torch.Tensor, title: str, log: bool = False) -> None:
    for channel in values.T[:64]:
        panel.plot(steps, channel, color=GREY, linewidth=0.6, alpha=0.6)
    panel.plot(steps, values.mean(1), color=BLUE, linewidth=2, label="mean of channels")
    if log and bool((values > 0).all()) and bool(values.max() > 1.01 * values.min()):
        panel.set_yscale("log")
    panel.legend(fontsize=9, frameon=False)
    _title(panel, f"{title}, per channel")


def _gains(panel: Axes, steps: np.ndarray, shown: report.Figures) -> None:
    gains = shown.gain.T.numpy()
    edges = np.arange(len(steps) + 1) + 0.5
    drawn = panel.pcolormesh(edges, np.arange(len(gains) + 1) - 0.5, gains, cmap="viridis", rasterized=True)
    scale = panel.figure.colorbar(drawn, ax=panel)
    scale.ax.tick_params(labelsize=9)
    scale.ax.ticklabel_format(axis="y", scilimits=(-2, 3))
    panel.grid(False)
    panel.set_yticks(range(0, len(gains), -(-len(gains) // 8)))
    panel.set_ylabel("channel", fontsize=10)
    _title(panel, f"gain c of {shown.rule.solver} per step and channel")


def _stability(panel: Axes, steps: np.ndarray, shown: report.Figures) -> None:
    for (k, low, high), shade in zip(shown.spread, (0.25, 0.5, 1.0), strict=False):
        if torch.equal(low, high):
            panel.plot(steps, low, color=BLUE, linewidth=2, label=f"all {k} runs" if k > 1 else "the one run")
        else:
            label = f"K = {k}" + (" run" if k == 1 else " runs")
            panel.fill_between(
                steps, low, high, color=ORANGE if k == 1 else BLUE, alpha=shade, label=label, linewidth=0
            )
    if shown.spread:
        panel.legend(fontsize=9, frameon=False)
    panel.ticklabel_format(axis="y", scilimits=(-2, 3))
    _title(panel, "mean c over the runs: lowest to highest of K")


def _ratios(panel: Axes, steps: np.ndarray, shown: report.Figures) -> None:
    panel.plot(steps, shown.error_db, color=BLUE, marker="o", markersize=3, label="signal to error")
    panel.plot(steps, shown.noise_db, color=ORANGE, marker="o", markersize=3, label="signal to V")
    panel.set_ylabel("dB", fontsize=10)
    panel.legend(fontsize=9, frameon=False)
    _title(panel, "signal to noise")


def _shape(panel: Axes, residuals: Sequence[Residual]) -> None:
    width = 2 * LIMIT / BINS
    middle = -LIMIT + width * (np.arange(BINS) + 0.5)
    chosen = sorted({round(place) for place in np.linspace(0, len(residuals) - 1, 3)})
    for place, colour in zip(chosen, (ORANGE, GREY, BLUE), strict=False):
        counts, total = residuals[place].histogram.double(), int(residuals[place].count.sum())
        if total:
            label = f"step {place + 1}, excess kurtosis {residuals[place].excess_kurtosis():.2g}"
            density = (counts / total / width).numpy()
            panel.plot(middle, np.where(density > 0, density, np.nan), color=colour, label=label, linewidth=1.4)
    panel.plot(middle, np.exp(-(middle**2) / 2) / np.sqrt(2 * np.pi), "k--", linewidth=1, label="Gaussian")
    panel.set_yscale("log")
    panel.set_ylim(1e-6, 60)
    panel.set_xlabel("error beside its regression, in standard deviations", fontsize=10)
    panel.legend(fontsize=8, frameon=False, loc="upper center")
    _title(panel, "how Gaussian the error is")
