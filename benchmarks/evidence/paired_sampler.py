"""Samples of full precision and of a quantized model from the same noise, and calibrations of the two."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from copy import copy
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from gimbal.calibration.statistics import QDriftStatistics
from gimbal.core.layer_correction import LayerOffsets
from gimbal.core.plan import Plan, Variance, make_plan
from gimbal.core.solvers import run

from . import bands, calibrate, layers, stress
from .bands import BandMap
from .calibrate import Denoise, Map
from .formats import NumberFormat
from .layers import PairedRun, Search
from .stress import Stress
from .subjects import Setting, Subject, noise

Sampled = Callable[[Denoise, Tensor], Tensor]  # what samples with a model
RUNS = 5  # of a calibration: the paper's number
HELD_OUT = 9  # the draw of held-out runs
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
        self._x = self.full.start(noise(samples, seed, setting.canvas), self.sigmas[0])
        self._calibrated: dict[Hashable, object] = {}
        self._chosen: tuple[Tensor, Tensor] | None = None

    def sample(
        self,
        *,
        full: bool = False,
        layers: LayerOffsets | None = None,
        maps: Sequence[Map] | Sequence[BandMap] | None = None,
        apply: Callable[[Tensor, Map], Tensor] | Callable[[Tensor, BandMap], Tensor] = calibrate.mapped,
        **corrections: object,
    ) -> Tensor:
        """Latents (samples, C, h, w). corrections: make_plan's."""
        after = None if maps is None else (lambda step, state: apply(state, maps[step]))
        denoise = self._denoise(self.full if full else self.quantized, self.labels, layers)
        generator = torch.Generator().manual_seed(self.seed)  # of the stochastic bias correction
        return run(self.plan(**corrections), denoise, self.start(), after_step=after, generator=generator)

    def start(self) -> Tensor:
        """The states (samples, C, h, w) that the samples begin with."""
        return self._x

    def calibration_draw(self, runs: int = RUNS, again: int = 0) -> tuple[Tensor, Tensor]:
        """Classes (runs,) and first states (runs, C, h, w), on noise that no sample of the evaluation has, other noise and
        classes for each seed. The runs chosen, where they are."""
        if self._chosen is not None:
            return self._chosen
        draw = 100_000 + 100 * self.seed + runs + 1_000_000 * again
        labels = self.setting.calibration_labels(runs, torch.Generator().manual_seed(draw))
        return labels, self.full.start(noise(runs, draw, self.setting.canvas), self.sigmas[0])

    def held_out(self, runs: int) -> PairedSampler:
        """The same with its calibrations, whose samples are runs that neither they nor the evaluation have."""
        other = copy(self)
        other.labels, other._x = self.calibration_draw(runs, HELD_OUT)
        return other

    def full_from(self, labels: Tensor, x: Tensor) -> Tensor:
        """Full precision's latents from these classes and first states."""
        return run(self.plan(), self._denoise(self.full, labels), x)

    def calibrated_on(self, chosen: Tensor, pool: int) -> PairedSampler:
        """The same, whose calibrations all have the runs `chosen`, by their places in a draw of `pool` runs."""
        labels, x = self.calibration_draw(pool)
        other = copy(self)
        other._calibrated, other._chosen = {}, (labels[chosen], x[chosen])
        return other

    def stress(self, runs: int) -> Stress:
        """What quantization does to each run of a draw."""
        return self._calibrate("stress", runs, lambda: partial(stress.measure, self.plan()))

    def rival(self, fit: Callable[[Plan, Denoise, Denoise, Tensor], Sampled]) -> Tensor:
        """Latents, by a rival's way."""
        sample = self._calibrate(("rival", fit), RUNS, lambda: partial(fit, self.plan()))
        return sample(self._denoise(self.quantized, self.labels), self.start())

    def plan(self, **corrections: object) -> Plan:
        return make_plan(self.setting.solver, self.sigmas, path=self.full.path, **corrections)

    def statistics(self, runs: int = RUNS) -> QDriftStatistics:
        return self._calibrate("statistics", runs, lambda: partial(calibrate.statistics, self.plan()))

    def variance(self, runs: int = RUNS, channels: str = "channel") -> Variance:
        if self.form is NOISE:
            return lambda sigma: torch.tensor(NOISE_VARIANCE)
        return partial(self.statistics(runs).variance, channels=channels)

    def maps(
        self, runs: int = RUNS, drift: bool = False, layers: LayerOffsets | None = None, again: int = 0
    ) -> list[Map]:
        """Moment matching's, found with these corrections on or without them. again: another draw."""

        def fit() -> Callable:
            plan = self.plan(variance=self.variance(runs)) if drift else self.plan()
            return partial(calibrate.state_maps, self.plan(), plan)

        return self._calibrate(("maps", drift, layers), runs, fit, again, layers)

    def layers(self, runs: int = RUNS, search: Search = Search()) -> LayerOffsets:  # noqa: B008
        """The layer correction, found run after run."""
        if (search, runs) not in self._calibrated:
            labels, x = self.calibration_draw(runs)
            each = [
                PairedRun(x[i : i + 1], *(self._denoise(model, labels[i : i + 1]) for model in self._models))
                for i in range(len(labels))
            ]
            networks = (model.network for model in self._models)
            self._calibrated[search, runs] = layers.find(self.plan(), *networks, each, search)
        return self._calibrated[search, runs]

    def band_maps(self, runs: int = RUNS) -> list[BandMap]:
        return self._calibrate("bands", runs, lambda: partial(bands.band_maps, self.plan()))

    @property
    def _models(self) -> tuple[Subject, Subject]:
        return self.full, self.quantized

    def _calibrate(
        self,
        key: Hashable,
        runs: int,
        fit: Callable[[], Callable],
        again: int = 0,
        layers: LayerOffsets | None = None,
    ) -> object:
        """Once. layers: the correction that is on meanwhile."""
        if (key, runs, again) not in self._calibrated:
            labels, x = self.calibration_draw(runs, again)
            models = self._denoise(self.full, labels), self._denoise(self.quantized, labels, layers)
            self._calibrated[key, runs, again] = fit()(*models, x)
        return self._calibrated[key, runs, again]

    def _denoise(self, subject: Subject, labels: Tensor, found: LayerOffsets | None = None) -> Denoise:
        generator = torch.Generator().manual_seed(self.seed + 1)
        noisy = self.form is NOISE and subject is self.quantized

        def denoise(x: Tensor, sigma: Tensor) -> Tensor:
            level = float(sigma[0])
            output = subject.output(x, level, labels, self.setting.cfg)
            if noisy:
                output = output + NOISE_VARIANCE**0.5 * torch.randn(output.shape, generator=generator)
            return x - level * output

        return denoise if found is None else layers.corrected(found, subject.network, denoise)
