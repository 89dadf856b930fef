"""Figures and contact sheets of the report, on a light ground of their own: they read on white pages and dark ones."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image
from torch import Tensor

from .model import Network, Seed, decode_unclipped
from .table import Part

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.ticker import FixedLocator, NullFormatter

from gimbal_demo.sheet import contact_sheet

from . import qsilk, report, samg, samg_report

PAPER, INK, GRID = "#faf9f6", "#1c1c1e", "#d9d6cf"
STYLES = {
    "CFG": ("#1c1c1e", "o", "-"),
    "minmax": ("#c2410c", "s", "-"),
    "quantile": ("#0369a1", "D", "-"),
    "bound": ("#7e22ce", "^", "--"),
    "shuffled": ("#737373", "x", ":"),
    "swapped": ("#b91c1c", "+", ":"),
    "same mean": ("#4d7c0f", "1", ":"),
    "same norm": ("#a16207", "2", ":"),
}
TITLES = {
    "CFG": "plain CFG",
    "minmax": "SAMG minmax",
    "quantile": "SAMG quantile",
    "bound": "SAMG quantile, bound",
    "shuffled": "control: shuffled",
    "swapped": "control: swapped",
    "same mean": "control: same mean",
    "same norm": "control: same norm",
}
NUMBERED = (1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0)
TICKS = (4, 6, 8, 10, 15, 20, 30, 40, 60, 100, 150)
COLUMNS = 10  # the first samples of seed 0: each class once
COLOURS = 256  # of a contact sheet's palette


def frontier(part: Part, path: Path) -> None:
    """Frechet distance against accuracy and against margin: lower and further right is better."""
    figure, axes = plt.subplots(1, 2, figsize=(11.5, 4.8), facecolor=PAPER, layout="constrained", sharey=True)
    for axis, measure, label in zip(
        axes, ("accuracy", "margin"), ("accuracy, %", "margin of the class asked for, logits"), strict=True
    ):
        factor = 100 if measure == "accuracy" else 1
        for variant, (colour, marker, line) in STYLES.items():
            rows = samg_report.rows_of(part, (variant,))
            x = [part.mean(row, measure) for row in rows]
            y = [part.mean(row, "fd_features") for row in rows]
            axis.errorbar(
                [factor * e.mean for e in x],
                [e.mean for e in y],
                xerr=[factor * e.error for e in x],
                yerr=[e.error for e in y],
                color=colour,
                marker=marker,
                linestyle=line if variant in ("CFG", *samg.SAMG) else "none",
                label=TITLES[variant],
                markersize=5,
                linewidth=1.3,
                elinewidth=0.8,
                capsize=2,
            )
        axis.set(xlabel=label, yscale="log", facecolor=PAPER)
        axis.yaxis.set_major_locator(FixedLocator(TICKS))
        axis.yaxis.set_major_formatter("{x:g}")
        axis.yaxis.set_minor_formatter(NullFormatter())
        axis.grid(color=GRID, linewidth=0.6, which="both")
        axis.set_axisbelow(True)
    axes[0].set_xscale("function", functions=(_towards_all, _from_towards_all))
    axes[0].set_xticks([60, 70, 80, 90, 95, 98, 99, 100])
    axes[0].set_xlim(100 * min(part.mean(row, "accuracy").mean for row in part.names) - 8, 100.3)
    axes[0].set_ylabel("Frechet distance to real pictures (features)")
    for row in (samg.name("CFG", scale) for scale in NUMBERED):
        place = part.mean(row, "margin").mean, part.mean(row, "fd_features").mean
        axes[1].annotate(row.partition(", ")[2], place, (5, -11), textcoords="offset points", color=INK, fontsize=8)
    axes[1].legend(fontsize=8, facecolor=PAPER, edgecolor=GRID)
    figure.suptitle(
        "Lower is closer to real pictures, right is truer to the class. Numbers: CFG's scale.", fontsize=11
    )
    figure.savefig(path, dpi=110, facecolor=PAPER)
    plt.close(figure)


def _towards_all(percent: np.ndarray) -> np.ndarray:
    """Stretches the accuracies near 100 %."""
    return -np.log(np.maximum(101.0 - percent, 1e-3))


def _from_towards_all(x: np.ndarray) -> np.ndarray:
    return 101.0 - np.exp(-x)


def sheets(network: Network, samples: int, folder: Path) -> list[Path]:
    """Contact sheets of `qsilk`: rows are methods, columns the first samples of seed 0 in every row."""
    start = Seed(network, samples, 0)
    made = qsilk.methods()
    paths = []
    for guidance in qsilk.SHEETS:
        bands = []
        for rule in made.values():
            bands.append(as_images(start.sample(qsilk.SHEET_STEPS, "euler", rule(guidance), batches=1)[:COLUMNS]))
        title = f"Guidance {guidance:g}, {qsilk.SHEET_STEPS} Euler steps, the first {COLUMNS} samples of seed 0 in every row"
        sheet = contact_sheet(bands, [" | ".join(name.split(", ")) for name in made], title, COLUMNS)
        paths.append(folder / report.sheet_name(guidance))
        save(sheet, paths[-1])
    return paths


def as_images(latents: Tensor) -> Tensor:
    """ComfyUI's IMAGE (N, H, W, 3) of latents."""
    return decode_unclipped(latents).clamp(-1, 1).permute(0, 2, 3, 1) / 2 + 0.5


def save(sheet: Tensor, path: Path) -> None:
    pixels = (sheet[0].numpy() * 255).round().astype(np.uint8)
    Image.fromarray(pixels).quantize(COLOURS, Image.Quantize.MEDIANCUT).save(path, optimize=True)
