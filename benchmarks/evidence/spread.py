"""How far moment matching's maps spread over the draws of a calibration: two calibrations of as many runs, compared."""

from __future__ import annotations

import torch

from . import paired_sampler, posters
from . import quantization as q
from .paired_sampler import PairedSampler
from .quantization import Bench
from .runs import Results
from .subjects import Setting

FORM = posters.FORM
RUNS = (1, paired_sampler.RUNS)
SETTINGS = {  # by part
    "quantized-flow": q.SETTINGS["flow"],
    posters.KIND: (posters.SETTINGS[posters.SMALL], posters.SETTINGS[posters.LARGE]),
}


def measure(part: str, bench: Bench, results: Results) -> None:
    for setting in SETTINGS.get(part, ()):
        for runs in RUNS:
            if results.lacks(name(setting, runs)):
                results.add(name(setting, runs), between_draws(bench.sampler(setting, FORM), runs))


def name(setting: Setting, runs: int) -> str:
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
