"""Quantized models on larger canvases: rows of the poster model, at the sizes it was trained on.

What is measured here that small latents cannot show: whether moment matching holds where a picture has thousands of
positions, how far its maps then spread over the draws of a calibration, and whether maps of one size serve another.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from . import quantization as q
from .formats import HEAVY, MILD, Format
from .judge import Judge
from .metrics import Gaussian
from .model import posters
from .quantization import Bench, Cell, Setting, Trial
from .runs import Results
from .subjects import SIDE

KIND = "posters"
LARGE, SMALL, WIDE = (4 * SIDE, 4 * SIDE), (2 * SIDE, 2 * SIDE), (2 * SIDE, 4 * SIDE)
SETTINGS = {canvas: Setting(KIND, "euler", scheduler="simple", canvas=canvas) for canvas in (SMALL, LARGE, WIDE)}
FORMATS = {SMALL: (HEAVY[2], HEAVY[0], MILD[2]), LARGE: (HEAVY[2], MILD[2])}
SPREAD = HEAVY[2]  # the format of what is told of draws and of other sizes
FEW = (1,)  # runs of a calibration, beside the usual number
HOME = q.SETTINGS["flow"][0]  # of the small model
OTHER_SIZES = {SMALL: (LARGE,), LARGE: (SMALL,), WIDE: (SMALL, LARGE)}


class CellJudge:
    """Judges posters by their cells, each as large as the pictures that the judge knows."""

    def __init__(self, judge: Judge) -> None:
        self.judge = judge

    def measures(self, latents: Tensor, labels: Tensor) -> dict[str, float]:
        cells = posters.cells(latents, SIDE)
        return self.judge.measures(cells, labels.repeat_interleave(len(cells) // len(labels)))

    def gaussians(self, latents: Tensor) -> dict[str, Gaussian]:
        return self.judge.gaussians(posters.cells(latents, SIDE))


def cells(kind: str) -> Iterator[Cell]:
    for canvas, form, method in rows():
        quick = canvas == SMALL and form is SPREAD and method in (q.FULL, q.PLAIN, q.MOMENTS)
        yield Cell(SETTINGS[canvas], form, method, q.METHODS[method], quick)
    for method in (q.FULL, q.PLAIN, q.MOMENTS):
        yield Cell(SETTINGS[WIDE], SPREAD, method, q.METHODS[method])
    for canvas, others in OTHER_SIZES.items():
        for other in others:
            yield Cell(SETTINGS[canvas], SPREAD, of_size(other), _of_size(SETTINGS[other]))
    for canvas in (SMALL, LARGE):
        for runs in FEW:
            yield Cell(SETTINGS[canvas], SPREAD, few(runs), _few(runs))


def rows() -> Iterator[tuple[tuple[int, int], Format, str]]:
    """Of the main table. The largest canvas takes most of the time, and has fewer."""
    for canvas, forms in FORMATS.items():
        for form in forms:
            first = (q.FULL,) if form is forms[0] else ()
            whole = canvas == SMALL or form is forms[0]
            for method in (*first, q.PLAIN, *((q.DRIFT, q.MOMENTS, q.BANDS) if whole else (q.MOMENTS,))):
                yield canvas, form, method


def of_size(canvas: tuple[int, int]) -> str:
    return f"maps of {canvas[0]} x {canvas[1]}"


def few(runs: int) -> str:
    return f"moments, K = {runs}"


def _of_size(source: Setting) -> Callable[[Bench, Trial], Tensor]:
    return lambda bench, trial: trial.sample(maps=bench.trial(source, trial.form).maps())


def _few(runs: int) -> Callable[[Bench, Trial], Tensor]:
    return lambda bench, trial: trial.sample(maps=trial.maps(runs))


def measure_spread(bench: Bench, flow: q.Models, results: Results) -> None:
    """Of the maps over draws, on the flow model's own canvas and on the larger ones."""
    home = Bench(flow, bench.samples, bench.seed, bench.judge)
    for where, setting in [(home, HOME), (bench, SETTINGS[SMALL]), (bench, SETTINGS[LARGE])]:
        for runs in (*FEW, q.RUNS):
            if results.lacks(spread_name(setting, runs)):
                results.add(spread_name(setting, runs), spread(where.trial(setting, SPREAD), runs))


def spread_name(setting: Setting, runs: int) -> str:
    return f"{setting.name}; {SPREAD.name}; spread of maps, K = {runs}"


def spread(trial: Trial, runs: int) -> dict[str, float]:
    """How far the maps of two draws are from one another, and how far they agree to be from no map: root mean squares
    over steps and channels of the scale's logarithm and of the shift."""
    a, b = (trial.maps(runs, again=again) for again in (0, 1))
    found = {}
    for name, of in {"scale": _log_scales, "shift": _shifts}.items():
        ours, theirs = of(a), of(b)
        found[f"{name}_apart"] = math.sqrt(float((ours - theirs).square().mean()) / 2)  # of one draw
        found[f"{name}_size"] = math.sqrt(max(float((ours * theirs).mean()), 0.0))
    return found


def _log_scales(maps: list[q.Map]) -> Tensor:
    return torch.stack([scale for scale, _ in maps]).log()


def _shifts(maps: list[q.Map]) -> Tensor:
    return torch.stack([shift for _, shift in maps])
