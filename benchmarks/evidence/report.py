"""The report: docs/RESULTS.md and its like, every number of it from stored results."""

from __future__ import annotations

import os
import statistics
from collections.abc import Iterator
from pathlib import Path

from . import (
    judge,
    model,
    posters,
    posters_report,
    qsilk,
    qsilk_report,
    quantization,
    quantization_report,
    reference,
    samg_report,
)
from .metrics import CONFIDENCE, FAR
from .table import Part, markdown

QUANTIZED = tuple(f"{part}-{kind}" for part in quantization.PARTS for kind in quantization.SETTINGS)
PARTS = ("samg", "qsilk", "real", "float32", *QUANTIZED, posters.KIND)
FRONTIER = "samg_frontier.png"


def text(folder: Path, images: str, command: str) -> str:
    """Markdown. folder: of the stored numbers; images: path of the figures' folder from the report; command: as typed."""
    check(folder)
    parts = {name: Part(folder, name) for name in PARTS}
    sheets = [f"{images}/{sheet_name(guidance)}" for guidance in qsilk.SHEETS]
    quantized = quantization_report.Quantized(parts)
    blocks = [
        *_head(parts, command),
        *_findings(parts),
        *quantization_report.in_short(quantized, posters_report.findings(parts[posters.KIND])),
        *samg_report.section(parts["samg"], f"{images}/{FRONTIER}"),
        *qsilk_report.section(parts["qsilk"], parts["real"], sheets),
        *quantization_report.section(quantized, [f"{images}/{name}" for name in quantization_report.IMAGES]),
        *posters_report.section(parts, f"{images}/{posters_report.SHEET}"),
        *_precision(parts),
        *_method(parts),
    ]
    return "\n\n".join(blocks) + "\n"


def check(folder: Path) -> None:
    """ValueError where there is too little for a report."""
    for name in ("samg", "qsilk", "real"):
        part = Part(folder, name)
        if not part.names or part.seeds < 2:
            raise ValueError(
                f"evidence: {folder} has {part.seeds} seeds of the part {name}; a report needs 2 or more of each: run the "
                "command without --part and --seeds."
            )


def sheet_name(guidance: float) -> str:
    return f"qsilk_guidance_{guidance:g}.png"


def relative(folder: Path, report: Path) -> str:
    return Path(os.path.relpath(folder, report.parent)).as_posix()


def _head(parts: dict[str, Part], command: str) -> Iterator[str]:
    about = [stored["about"] for part in parts.values() for stored in part.stored]
    dates = sorted({entry["date"] for entry in about})
    machines = sorted({entry["machine"] for entry in about})
    main = parts["samg"].stored[0]["about"]
    seconds = sum(
        statistics.median(part.values(row, "seconds")) * part.seeds
        for part in (parts[name] for name in ("samg", "qsilk", *QUANTIZED, posters.KIND))
        for row in part.names
        if "seconds" in part.stored[0]["runs"][row]
    )
    yield "# What the methods do to pictures, measured"
    yield (
        f"Written by `{command}`; no number here is copied by hand. {main['samples']} samples for each seed and row unless it says otherwise, {parts['samg'].seeds} seeds, "
        f"{' to '.join(sorted({dates[0], dates[-1]}))}, on {'; '.join(machines)}; torch {main['torch']}, ComfyUI {main['comfyui']}'s network classes, the network "
        f"in {main['precision']}; the runs take about {seconds / 60:.0f} minutes of one core."
    )
    yield (
        "The model is the demo's: a flow model of 3.75 M parameters that draws coloured letters, 64 x 64 pixels, latents of 16 x 16 x 16; for quantization also its twin that predicts eps, and one trained on to posters of many letters, latents of up to 64 x 64. "
        "**They are toys. Read signs and orders of magnitude, not percentages**, and expect other models to differ. How it was measured, and what that can and cannot show, is at the end."
    )


def _findings(parts: dict[str, Part]) -> Iterator[str]:
    yield "## In short"
    yield (
        "What an earlier study on smaller models (latents of 6 x 8 x 8, two seeds) found, and what this one finds. Verdicts follow from the numbers by fixed rules."
    )
    found = [*samg_report.findings(parts["samg"]), *qsilk_report.findings(parts["qsilk"], parts["real"])]
    yield markdown(["found earlier", "here", "verdict"], [[a, b, f"**{c}**"] for a, b, c in found])


def _precision(parts: dict[str, Part]) -> Iterator[str]:
    part = parts["float32"]
    if not part.names:
        return
    yield "## The same in float32"
    yield (
        f"The runs above have the network's matrix products in bfloat16 (weights and activations rounded, sums in float32; the sampling arithmetic and every method in float32), "
        f"which is about twice as fast here. {part.seeds} seeds again in float32: bfloat16 minus float32, in percent of the latter, seed by seed."
    )
    rows = []
    for row in part.names:
        source = parts["samg"] if row in parts["samg"] else parts["qsilk"]
        cells = [row]
        for measure in ("fd_features", "fd_pixels", "margin", "saturation", "spread", "accuracy"):
            pairs = list(zip(source.values(row, measure), part.values(row, measure), strict=False))
            if measure == "accuracy":
                cells.append(", ".join(f"{100 * (half - full):+.1f}" for half, full in pairs))
            else:
                cells.append(", ".join(f"{100 * (half / full - 1):+.1f}" for half, full in pairs))
        rows.append(cells)
    header = [
        "row",
        "FD features, %",
        "FD pixels, %",
        "margin, %",
        "pixels out of range, %",
        "std, %",
        "accuracy, points",
    ]
    yield markdown(header, rows)


def _method(parts: dict[str, Part]) -> Iterator[str]:
    real = parts["real"]
    floor = {measure: real.mean(reference.UNTOUCHED, measure) for measure in ("fd_features", "fd_pixels", "accuracy")}
    main = parts["samg"].stored[0]["about"]
    yield "## How it was measured"
    yield "\n".join(
        [
            "- **Pairs.** Every method of a seed starts from the same noise with the same classes, so differences are taken seed by seed. Standard error and "
            f"t interval ({CONFIDENCE:.0%}) are over the seeds. *better*, *worse*: the interval does not hold 0; else *no difference*. No correction is made for the number of rows: "
            "about one row in twenty without any effect will get a word.",
            f"- **Distances.** Squared Frechet distances between {main['samples']} samples and {judge.PICTURES} real pictures that neither the model nor the classifier has seen, passed through the "
            f"same autoencoder. *Features*: the classifier's last layer before the classes, each feature divided by its standard deviation, {judge.FEATURES} principal components. "
            f"*Pixels*: {judge.COMPONENTS} principal components of the pixels. In both the components kept have a mean variance of 1. A distance from so few samples is too large "
            f"(features {floor['fd_features'].mean:.1f}, pixels {floor['fd_pixels'].mean:.2f} for as many *real* pictures), by about as much for every method: "
            "compare rows, do not read a distance on its own, and compare with no table of another number of samples. Believe what both spaces say.",
            f"- **Accuracy** is the share of samples that a convolutional classifier of real pictures sees as the class asked for ({100 * floor['accuracy'].mean:.1f} % of real pictures). "
            "**Margin** is its logit for that class less the largest other one, mean over samples: it goes on rising where accuracy has reached its end.",
            f"- **Out of range**: share of values that the decoder's clip to [-1, 1] cuts. **Tails**: share of latent values beyond {FAR:g} standard deviations of their channel in real latents; kurtosis is 3 for a "
            "normal distribution.",
            f"- **Sampling.** Euler steps on ComfyUI's SD3 schedule (shift 3), the kernels of `gimbal.core` called as the nodes call them, {model.BATCH} samples in a batch.",
            "- **The model is imperfect.** Without guidance its samples have too little contrast (std / real below 1), so that a distance to real pictures can reward whatever adds "
            "contrast up to that point, and guidance does. Distances of QSilk at high guidance reward whatever takes contrast away.",
            "- **Not shown here**: large models, real autoencoders, text prompts, stochastic samplers. Small latents also mean small tiles and few values beyond a quantile.",
        ]
    )
    yield (
        "No row is left out. After the first two seeds had been looked at, rows were added and none was changed: more scales on both curves of plain guidance, "
        "*no average*, and the dpmpp_2m setting."
    )
