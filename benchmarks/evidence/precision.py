"""Unrounded activations in some steps or layers: what a precision plan gives back, alone and beside layer correction and
moment matching."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass

from torch import Tensor, nn

from gimbal.core import places
from gimbal.core.layer_correction import LayerOffsets, Layout
from gimbal.core.layer_estimate import ClosedLoop, OutputMeans, even_groups, offsets
from gimbal.core.place_hooks import acting, observing
from gimbal.core.precision_plan import PrecisionPlan, first_and_last
from gimbal.core.run_means import RunMeans
from gimbal.core.solvers import run

from . import calibrate, planning
from .calibrate import Denoise
from .formats import HEAVY, RoundedLinear
from .paired_sampler import RUNS, PairedSampler
from .quantization import FULL, METHODS, PLAIN, Bench, QuantizedRow
from .subjects import SETTINGS, Subject

GROUPS = 4  # of steps, as the calibration has them
BRANCHES = [0, 1]  # cond and uncond
FORMATS = (HEAVY[2], HEAVY[0])
LAYERS = "layers and moments"
BUDGET = 0.1  # share of the rounded layers' multiply-adds
Steps = tuple[int, int]  # numbers of first and of last steps


@dataclass(frozen=True, eq=False)
class Planned:
    """A setting's quantized model under `plan`."""

    sampler: PairedSampler
    plan: PrecisionPlan

    def sample(self, correction: tuple[LayerOffsets, Sequence[calibrate.Map]] | None = None) -> Tensor:
        """Latents (samples, C, h, w)."""
        layers, maps = correction or (None, None)
        x = self.sampler.start()
        after = None if maps is None else (lambda step, state: calibrate.mapped(state, maps[step]))
        return run(self.sampler.plan(), self._denoise(self.sampler.labels, layers), x, after_step=after)

    def calibrated(self, runs: int = RUNS) -> tuple[LayerOffsets, Sequence[calibrate.Map]]:
        """Layer correction run after run, then maps with it on, as the node Q-Drift Calibrate finds them."""
        labels, x = self.sampler.calibration_draw(runs)
        layers = self._layers(labels, x)
        full, plan = self._full(labels, lambda level: None), self.sampler.plan()
        return layers, calibrate.state_maps(plan, plan, full, self._denoise(labels, layers), x)

    def _layers(self, labels: Tensor, x: Tensor) -> LayerOffsets:
        full, quantized = self.sampler.full.network, self.sampler.quantized.network
        _, names = places.find(full, quantized)
        with observing(quantized, names) as found:
            self._denoise(labels[:1], None)(x[:1], x.new_full((1,), self.sampler.sigmas[0]))
        layout, levels = Layout(found), len(self.sampler.sigmas) - 1
        groups = even_groups(levels, min(GROUPS, levels))
        runs = RunMeans((groups[-1] + 1, layout.width))
        for label, start in zip(labels.split(1), x.split(1), strict=True):
            means = OutputMeans(layout, levels)
            watching = self._full(label, lambda level, m=means: acting(full, layout.places, m.at(level, BRANCHES)))
            run(self.sampler.plan(), watching, start)
            loop = ClosedLoop(layout, groups, means.values(), runs)
            correct = self._quantized(
                label, lambda level, c=loop: acting(quantized, layout.places, c.at(level, BRANCHES))
            )
            run(self.sampler.plan(), correct, start)
            runs = runs.with_run(loop.difference())
        return offsets(layout, self.sampler.sigmas[:-1], groups, runs)

    def _denoise(self, labels: Tensor, layers: LayerOffsets | None) -> Denoise:
        """layers: on, where given."""
        network, sigmas = self.sampler.quantized.network, self.sampler.sigmas
        if layers is None:
            return self._quantized(labels, lambda level: None)
        return self._quantized(labels, lambda level: acting(network, layers.places, layers.acting(sigmas[level])))

    def _full(self, labels: Tensor, around: Callable) -> Denoise:
        return self._model(self.sampler.full, labels, around)

    def _quantized(self, labels: Tensor, around: Callable) -> Denoise:
        network, sigmas = self.sampler.quantized.network, self.sampler.sigmas
        names = [name for name, each in network.named_modules() if isinstance(each, RoundedLinear)]

        def plan(level: int) -> AbstractContextManager[None] | None:
            chosen = self.plan.unrounded(sigmas[level], names)
            return unrounded(network, chosen) if chosen else None

        return self._model(self.sampler.quantized, labels, around, plan)

    def _model(self, subject: Subject, labels: Tensor, *around: Callable) -> Denoise:
        """around: each gives, for a step, what its call is made in, or None."""

        def denoise(x: Tensor, sigma: Tensor) -> Tensor:
            level = self.sampler.sigmas.index(float(sigma[0]))
            with ExitStack() as entered:
                for context in filter(None, (each(level) for each in around)):
                    entered.enter_context(context)
                return x - float(sigma[0]) * subject.output(x, float(sigma[0]), labels, self.sampler.setting.cfg)

        return denoise


@contextmanager
def unrounded(network: nn.Module, names: Collection[str]) -> Iterator[None]:
    """While it is entered, the simulated quantized layers of these names see activations in full precision."""
    chosen = (network.get_submodule(name) for name in names)
    layers = [(each, each.activation_bits) for each in chosen if isinstance(each, RoundedLinear)]
    try:
        for each, _ in layers:
            each.activation_bits = None
        yield
    finally:
        for each, bits in layers:
            each.activation_bits = bits


@dataclass(frozen=True)
class Method:
    """plan: of the samples. calibrated: that of the calibration of layers and moments; None: no such correction."""

    plan: Steps
    calibrated: Steps | None = None

    @property
    def name(self) -> str:
        words = [f"{which} {count}" for which, count in zip(("first", "last"), self.plan, strict=True) if count]
        steps = " and ".join(words) or "none"
        if self.calibrated is None:
            return steps
        return f"{steps}; {LAYERS}{'' if self.calibrated == self.plan else ' found without the plan'}"

    def make(self, bench: Bench, sampler: PairedSampler) -> Tensor:
        correction = None if self.calibrated is None else _by_hand(sampler, self.calibrated).calibrated()
        return _by_hand(sampler, self.plan).sample(correction)

    def spends(self, steps: int) -> str:
        """The share of the rounded multiply-adds: all layers are unrounded in such a step, and every step costs the same."""
        return f"{100 * sum(self.plan) / steps:.3g} %"


@dataclass(frozen=True)
class Budgeted:
    """A plan that measurements chose under BUDGET. corrected: also layers and moments, found under it."""

    corrected: bool

    @property
    def name(self) -> str:
        return f"measured, at most {100 * BUDGET:.3g} %{f'; {LAYERS}' if self.corrected else ''}"

    def make(self, bench: Bench, sampler: PairedSampler) -> Tensor:
        def sample(plan: PrecisionPlan, labels: Tensor, x: Tensor) -> Tensor:
            return run(sampler.plan(), Planned(sampler, plan)._quantized(labels, lambda level: None), x)

        found = Planned(sampler, planning.find(sampler, BUDGET, sample))
        return found.sample(found.calibrated() if self.corrected else None)

    def spends(self, steps: int) -> str:
        return f"at most {100 * BUDGET:.3g} %"


def _by_hand(sampler: PairedSampler, steps: Steps) -> Planned:
    return Planned(sampler, first_and_last(sampler.sigmas, *steps) if any(steps) else PrecisionPlan())


NONE = (0, 0)
ALONE = ((1, 0), (2, 0), (3, 0), (5, 0), (0, 1), (0, 3), (3, 3), (20, 0))
BESIDE = (NONE, (1, 0), (2, 0), (3, 0))
PLANS: tuple[Method | Budgeted, ...] = (
    *map(Method, ALONE),
    *(Method(plan, plan) for plan in BESIDE),
    Method((3, 0), NONE),
    Budgeted(False),
    Budgeted(True),
)


def rows(kind: str) -> Iterator[QuantizedRow]:
    setting = SETTINGS[kind][0]
    for form in FORMATS:
        first = (FULL, PLAIN) if form is FORMATS[0] else (PLAIN,)
        for method in first:
            yield QuantizedRow(setting, form, method, METHODS[method])
        for method in PLANS:
            yield QuantizedRow(setting, form, method.name, method.make)
