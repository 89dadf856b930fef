"""Samples of full precision and of a quantized model from the same noise, and calibrations of the two."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from gimbal.calibration.statistics import QDriftStatistics
from gimbal.core.plan import Plan, Variance, make_plan
from gimbal.core.solvers import run

from . import bands, calibrate
from .bands import BandMap
from .calibrate import Denoise, Map
from .formats import NumberFormat
from .subjects import Setting, Subject, noise

RUNS = 5  # of a calibration: the paper's number
NOISE = NumberFormat("white noise", lambda network: network)
NOISE_VARIANCE = 0.1  # of the control, on the guided output


class Models:
    """A demo model and its quantized forms, each made once."""

    def __init__(self, full: Subject) -> None:
        self.full, self._quantized = full, {}

    def quantized(self, form: NumberFormat) -> Subject:
        if form.name not in self._quantized:
            self._quantized[form.name] = replace(self.full, network=form.quantize(self.full.network))
        return self._quantized[form.name]


class PairedSampler:
    """One seed's samples in one setting and format, by full precision and by the quantized model in any way."""

    def __init__(self, models: Models, setting: Setting, form: NumberFormat, samples: int, seed: int) -> None:
        exact = {"dtype": torch.float32} if form.exact else {}
        self.full, self.quantized = replace(models.full, **exact), replace(models.quantized(form), **exact)
        self.setting, self.form, self.samples, self.seed = setting, form, samples, seed
        self.sigmas = self.full.sigmas(setting.scheduler, setting.steps)
        self.labels = setting.labels(samples)
        self._calibrated: dict[Hashable, object] = {}

    def sample(
        self,
        *,
        full: bool = False,
        maps: Sequence[Map] | Sequence[BandMap] | None = None,
        apply: Callable[[Tensor, Map], Tensor] | Callable[[Tensor, BandMap], Tensor] = calibrate.mapped,
        **corrections: object,
    ) -> Tensor:
        """Latents (samples, C, h, w). corrections: make_plan's."""
        after = None if maps is None else (lambda step, state: apply(state, maps[step]))
        denoise = self._denoise(self.full if full else self.quantized, self.labels)
        generator = torch.Generator().manual_seed(self.seed)  # of the stochastic bias correction
        return run(self.plan(**corrections), denoise, self.start(), after_step=after, generator=generator)

    def start(self) -> Tensor:
        """The states (samples, C, h, w) that the samples begin with."""
        return self.full.start(noise(self.samples, self.seed, self.setting.canvas), self.sigmas[0])

    def calibration_draw(self, runs: int = RUNS, again: int = 0) -> tuple[Tensor, Tensor]:
        """Classes (runs,) and first states (runs, C, h, w), on noise that no sample of the evaluation has, other noise and
        classes for each seed."""
        draw = 100_000 + 100 * self.seed + runs + 1_000_000 * again
        labels = self.setting.calibration_labels(runs, torch.Generator().manual_seed(draw))
        return labels, self.full.start(noise(runs, draw, self.setting.canvas), self.sigmas[0])

    def plan(self, **corrections: object) -> Plan:
        return make_plan(self.setting.solver, self.sigmas, path=self.full.path, **corrections)

    def statistics(self, runs: int = RUNS) -> QDriftStatistics:
        return self._calibrate("statistics", runs, lambda: partial(calibrate.statistics, self.plan()))

    def variance(self, runs: int = RUNS, channels: str = "channel") -> Variance:
        if self.form is NOISE:
            return lambda sigma: torch.tensor(NOISE_VARIANCE)
        return partial(self.statistics(runs).variance, channels=channels)

    def maps(self, runs: int = RUNS, drift: bool = False, again: int = 0) -> list[Map]:
        """Moment matching's, found with Q-Drift's correction on or without it. again: another draw."""

        def fit() -> Callable:
            plan = self.plan(variance=self.variance(runs)) if drift else self.plan()
            return partial(calibrate.state_maps, self.plan(), plan)

        return self._calibrate(("maps", drift), runs, fit, again)

    def band_maps(self, runs: int = RUNS) -> list[BandMap]:
        return self._calibrate("bands", runs, lambda: partial(bands.band_maps, self.plan()))

    def _calibrate(self, key: Hashable, runs: int, fit: Callable[[], Callable], again: int = 0) -> object:
        """Once."""
        if (key, runs, again) not in self._calibrated:
            labels, x = self.calibration_draw(runs, again)
            models = (self._denoise(subject, labels) for subject in (self.full, self.quantized))
            self._calibrated[key, runs, again] = fit()(*models, x)
        return self._calibrated[key, runs, again]

    def _denoise(self, subject: Subject, labels: Tensor) -> Denoise:
        generator = torch.Generator().manual_seed(self.seed + 1)
        noisy = self.form is NOISE and subject is self.quantized

        def denoise(x: Tensor, sigma: Tensor) -> Tensor:
            level = float(sigma[0])
            output = subject.output(x, level, labels, self.setting.cfg)
            if noisy:
                output = output + NOISE_VARIANCE**0.5 * torch.randn(output.shape, generator=generator)
            return x - level * output

        return denoise
