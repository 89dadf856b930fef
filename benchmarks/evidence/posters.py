"""Quantized models on larger canvases: rows of the poster model, at the sizes it was trained on.

What is measured here that small latents cannot show: whether moment matching holds where a picture has thousands of
positions, with one run in a calibration or several, and whether maps of one size serve another.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from . import paired_sampler
from . import quantization as q
from .formats import HEAVY, MILD, NumberFormat
from .judge import Judge
from .metrics import Gaussian
from .model import posters
from .paired_sampler import PairedSampler
from .quantization import Bench, QuantizedRow
from .runs import Results
from .subjects import SIDE, Setting

KIND = "posters"
LARGE, SMALL, WIDE = (4 * SIDE, 4 * SIDE), (2 * SIDE, 2 * SIDE), (2 * SIDE, 4 * SIDE)
SETTINGS = {canvas: Setting(KIND, "euler", scheduler="simple", canvas=canvas) for canvas in (SMALL, LARGE, WIDE)}
FORMATS = (HEAVY[2], HEAVY[0], MILD[2])
FORM = FORMATS[0]  # of what is told of draws and of other sizes
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


def rows(kind: str) -> Iterator[QuantizedRow]:
    for canvas, form, method in main_rows():
        quick = canvas == SMALL and form is FORM and method in (q.FULL, q.PLAIN, q.MOMENTS)
        yield QuantizedRow(SETTINGS[canvas], form, method, q.METHODS[method], quick)
    for method in (q.FULL, q.PLAIN, q.MOMENTS):
        yield QuantizedRow(SETTINGS[WIDE], FORM, method, q.METHODS[method])
    for canvas, others in OTHER_SIZES.items():
        for other in others:
            yield QuantizedRow(SETTINGS[canvas], FORM, of_size(other), q.with_maps_of(SETTINGS[other]))


def main_rows() -> Iterator[tuple[tuple[int, int], NumberFormat, str]]:
    """Of the main table. Bands take long on the largest canvas, and have one format there; layers have none."""
    for canvas in (SMALL, LARGE):
        for form in FORMATS:
            first, one = ((q.FULL,), (q.ONE_MOMENTS,)) if form is FORM else ((), ())
            bands = (q.BANDS,) if canvas == SMALL or form is FORM else ()
            layers = (q.LAYERS, q.LAYERS_AND_MOMENTS) if canvas == SMALL else ()
            for method in (*first, q.PLAIN, q.DRIFT, q.MOMENTS, *one, *bands, *layers):
                yield canvas, form, method


def of_size(canvas: tuple[int, int]) -> str:
    return f"maps of {canvas[0]} x {canvas[1]}"


# How far moment matching's maps spread over the draws of a calibration: two calibrations of as many runs, compared.
SPREAD_RUNS = (1, paired_sampler.RUNS)
SPREAD_SETTINGS = {"quantized-flow": q.SETTINGS["flow"], KIND: (SETTINGS[SMALL], SETTINGS[LARGE])}  # by part


def measure_spread(part: str, bench: Bench, results: Results) -> None:
    for setting in SPREAD_SETTINGS.get(part, ()):
        for runs in SPREAD_RUNS:
            if results.lacks(spread_name(setting, runs)):
                results.add(spread_name(setting, runs), between_draws(bench.sampler(setting, FORM), runs))


def spread_name(setting: Setting, runs: int) -> str:
    return f"{setting.name}; {FORM.name}; spread of maps, K = {runs}"


def between_draws(sampler: PairedSampler, runs: int) -> dict[str, float]:
    """Over steps and channels, of the scale's logarithm and of the shift: the mean product of two draws, an unbiased
    estimate of the mean square of what all draws agree on, and the mean square that one draw adds to it."""
    draws = [[torch.stack(parts).double() for parts in zip(*sampler.maps(runs, again=i), strict=True)] for i in (0, 1)]
    (scale, shift), (other_scale, other_shift) = draws
    measures = {}
    for name, a, b in (("scale", scale.log(), other_scale.log()), ("shift", shift, other_shift)):
        measures[f"{name}_common"] = float((a * b).mean())
        measures[f"{name}_own"] = float((a - b).square().mean()) / 2
    return measures
