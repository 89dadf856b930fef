"""How far moment matching's maps spread over the draws of a calibration: two calibrations of as many runs, compared."""

from __future__ import annotations

from torch import Tensor, stack

from . import posters
from . import quantization as q
from .quantization import Bench, Setting, Trial
from .runs import Results

FORM = posters.FORM
RUNS = (1, q.RUNS)
SETTINGS = {  # by part
    f"quantized-{posters.HOME.kind}": (posters.HOME,),
    posters.KIND: (posters.SETTINGS[posters.SMALL], posters.SETTINGS[posters.LARGE]),
}


def measure(part: str, bench: Bench, results: Results) -> None:
    for setting in SETTINGS.get(part, ()):
        for runs in RUNS:
            if results.lacks(name(setting, runs)):
                results.add(name(setting, runs), between_draws(bench.trial(setting, FORM), runs))


def name(setting: Setting, runs: int) -> str:
    return f"{setting.name}; {FORM.name}; spread of maps, K = {runs}"


def between_draws(trial: Trial, runs: int) -> dict[str, float]:
    """Over steps and channels, of the scale's logarithm and of the shift: the mean product of two draws, an unbiased
    estimate of the mean square of what all draws agree on, and the mean square that one draw adds to it."""
    a, b = (trial.maps(runs, again=again) for again in (0, 1))
    found = {}
    for what, of in {"scale": _log_scales, "shift": _shifts}.items():
        ours, theirs = of(a).double(), of(b).double()
        found[f"{what}_common"] = float((ours * theirs).mean())
        found[f"{what}_own"] = float((ours - theirs).square().mean()) / 2
    return found


def _log_scales(maps: list[q.Map]) -> Tensor:
    return stack([scale for scale, _ in maps]).log()


def _shifts(maps: list[q.Map]) -> Tensor:
    return stack([shift for _, shift in maps])
