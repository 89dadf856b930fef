"""Quantized models plain and corrected: which runs are made, and how."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from gimbal.calibration.report import relative_error
from gimbal.calibration.statistics import QDriftStatistics
from gimbal.core.plan import Plan, Variance, make_plan
from gimbal.core.solvers import run

from . import bands, calibrate
from .bands import BandMap
from .calibrate import Denoise, Map
from .formats import HEAVY, MILD, Format
from .judge import Judge
from .metrics import Gaussian, frechet
from .model import conditioning
from .subjects import SIDE, Subject, noise

RUNS, MANY = 5, 20  # of a calibration: the paper's number, and more
COMPONENTS = 16  # principal components in the distances to full precision
CLASSES = len(conditioning.CLASSES)
NOISE = Format("white noise", lambda network: network)
NOISE_VARIANCE = 0.1  # of the control, on the guided output
FULL, PLAIN, DRIFT, MOMENTS, BOTH = "full precision", "quantized", "drift", "moments", "both"
BANDS = f"moments, {bands.COUNT} bands"
PAPER, GAIN = "drift, rule paper", "gain inversion"
SCALAR, MANY_DRIFT, MANY_MOMENTS = "drift, scalar", f"drift, K = {MANY}", f"moments, K = {MANY}"
ONE_MOMENTS = "moments, K = 1"
BIAS, STOCHASTIC = "bias correction", "bias correction, stochastic"
OWN, SHARED, INTERPOLATED, OTHER_CLASSES = "own maps", "shared out", "interpolated", "maps of other classes"
SAME = "maps of cfg 3"


@dataclass(frozen=True)
class Setting:
    """How a model is sampled. classes: "all", or "last", the second half of them; "first" is for calibrations. canvas:
    height and width of the latent."""

    kind: str
    solver: str
    steps: int = 20
    cfg: float = 3.0
    scheduler: str = ""
    classes: str = "all"
    canvas: tuple[int, int] = (SIDE, SIDE)

    @property
    def name(self) -> str:
        chosen = "" if self.classes == "all" else f", {self.classes} half of the classes"
        size = "" if self.canvas == (SIDE, SIDE) else f", {self.size}"
        return f"{self.kind} {self.solver}, {self.steps} steps, cfg {self.cfg:g}, {self.scheduler}{chosen}{size}"

    @property
    def size(self) -> str:
        return f"{self.canvas[0]} x {self.canvas[1]}"

    def labels(self, count: int) -> Tensor:
        return self._classes()[torch.arange(count) % len(self._classes())]

    def calibration_labels(self, count: int, generator: torch.Generator) -> Tensor:
        """As many different classes as there can be, drawn by chance."""
        classes = self._classes()
        return classes[torch.randperm(len(classes), generator=generator)[torch.arange(count) % len(classes)]]

    def _classes(self) -> Tensor:
        half = CLASSES // 2
        return torch.arange(CLASSES)[
            {"all": slice(None), "first": slice(half), "last": slice(half, None)}[self.classes]
        ]


SETTINGS = {
    "flow": (Setting("flow", "euler", scheduler="simple"),),
    "eps": (Setting("eps", "euler", scheduler="karras"), Setting("eps", "dpmpp_2m", scheduler="karras")),
}
OTHER_SCHEDULER = {"flow": "beta", "eps": "normal"}
TRANSFERRED = HEAVY[2]


class Models:
    """A demo model and its quantized forms, each made once."""

    def __init__(self, full: Subject) -> None:
        self.full, self._made = full, {}

    def quantized(self, form: Format) -> Subject:
        if form.name not in self._made:
            self._made[form.name] = self.full.other(network=form.quantize(self.full.network))
        return self._made[form.name]


class Trial:
    """One seed's samples in one setting and format, by full precision and by the quantized model in any way."""

    def __init__(self, models: Models, setting: Setting, form: Format, samples: int, seed: int) -> None:
        exact = {"dtype": torch.float32} if form.exact else {}
        self.full, self.quantized = models.full.other(**exact), models.quantized(form).other(**exact)
        self.setting, self.form, self.samples, self.seed = setting, form, samples, seed
        self.sigmas = self.full.sigmas(setting.scheduler, setting.steps)
        self.labels = setting.labels(samples)
        self._known: dict = {}

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
        x = self.full.start(noise(self.samples, self.seed, self.setting.canvas), self.sigmas[0])
        return run(self.plan(**corrections), denoise, x, after_step=after, generator=generator)

    def plan(self, **corrections: object) -> Plan:
        return make_plan(self.setting.solver, self.sigmas, path=self.full.path, **corrections)

    def statistics(self, runs: int = RUNS) -> QDriftStatistics:
        return self._once(
            ("statistics", runs), lambda: self._calibrate(runs, partial(calibrate.statistics, self.plan()))
        )

    def variance(self, runs: int = RUNS, channels: str = "channel") -> Variance:
        if self.form is NOISE:
            return lambda sigma: torch.tensor(NOISE_VARIANCE)
        return partial(self.statistics(runs).variance, channels=channels)

    def maps(self, runs: int = RUNS, drift: bool = False, again: int = 0) -> list[Map]:
        """Moment matching's, found with Q-Drift's correction on or without it. again: another draw."""
        plan = self.plan(variance=self.variance(runs)) if drift else self.plan()
        fit = partial(calibrate.state_maps, self.plan(), plan)
        return self._once(("maps", runs, drift, again), lambda: self._calibrate(runs, fit, again))

    def band_maps(self, runs: int = RUNS) -> list[BandMap]:
        fit = partial(bands.band_maps, self.plan())
        return self._once(("bands", runs), lambda: self._calibrate(runs, fit))

    def _calibrate(self, runs: int, measure: Callable, again: int = 0) -> object:
        """On noise that no sample of the evaluation has, other noise and classes for each seed."""
        draw = 100_000 + 100 * self.seed + runs + 1_000_000 * again
        labels = self.setting.calibration_labels(runs, torch.Generator().manual_seed(draw))
        x = self.full.start(noise(runs, draw, self.setting.canvas), self.sigmas[0])
        return measure(self._denoise(self.full, labels), self._denoise(self.quantized, labels), x)

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

    def _once(self, key: tuple, make: Callable) -> object:
        if key not in self._known:
            self._known[key] = make()
        return self._known[key]


class Bench:
    """A seed's trials and references, kept while they are needed."""

    def __init__(self, models: Models, samples: int, seed: int, judge: Judge) -> None:
        self.models, self.samples, self.seed, self.judge = models, samples, seed, judge
        self._trials: dict[tuple, Trial] = {}
        self._references: dict[tuple, tuple[Tensor, dict[str, Gaussian]]] = {}

    def trial(self, setting: Setting, form: Format) -> Trial:
        key = (setting, form.name)
        if key not in self._trials:
            self._trials[key] = Trial(self.models, setting, form, self.samples, self.seed)
        return self._trials[key]

    def full(self, setting: Setting, form: Format) -> Tensor:
        """Full precision's samples."""
        return self._reference(setting, form)[0]

    def _reference(self, setting: Setting, form: Format) -> tuple[Tensor, dict[str, Gaussian]]:
        key = (setting, form.exact)
        if key not in self._references:
            latents = self.trial(setting, form).sample(full=True)
            self._references[key] = latents, _first(self.judge.gaussians(latents))
        return self._references[key]

    def _distances(self, latents: Tensor, setting: Setting, form: Format) -> dict[str, float]:
        """From full precision's samples."""
        reference, gaussians = self._reference(setting, form)
        ours = _first(self.judge.gaussians(latents))
        found = {f"full_{space}": frechet(ours[space], theirs) for space, theirs in gaussians.items()}
        return found | {"mse": float((latents - reference).square().mean())}

    def measures(self, cell: Cell) -> dict[str, float]:
        """Of the row's samples."""
        trial = self.trial(cell.setting, cell.form)
        latents = cell.make(self, trial)
        measures = self.judge.measures(latents, trial.labels)
        if cell.method != FULL:
            measures |= self._distances(latents, cell.setting, cell.form)
        if cell.method == PLAIN and cell.form is not NOISE:
            measures["error"] = relative_error(trial.statistics())
        return measures


def _first(gaussians: dict[str, Gaussian]) -> dict[str, Gaussian]:
    """Of the first principal components alone: these few samples say nothing of all the components' covariance."""
    n = COMPONENTS
    return {space: Gaussian(each.mean[:n], each.covariance[:n, :n]) for space, each in gaussians.items()}


@dataclass(frozen=True)
class Cell:
    """One row: a method in one setting and format. quick: also part of the short table."""

    setting: Setting
    form: Format
    method: str
    make: Callable[[Bench, Trial], Tensor]
    quick: bool = False

    @property
    def name(self) -> str:
        return name(self.setting, self.form, self.method)


def name(setting: Setting, form: Format, method: str) -> str:
    if method == FULL:
        return f"{setting.name}; {FULL}{', float32' if form.exact else ''}"
    return f"{setting.name}; {form.name}; {method}"


METHODS: dict[str, Callable[[Bench, Trial], Tensor]] = {
    FULL: lambda bench, trial: bench.full(trial.setting, trial.form),
    PLAIN: lambda bench, trial: trial.sample(),
    DRIFT: lambda bench, trial: trial.sample(variance=trial.variance()),
    PAPER: lambda bench, trial: trial.sample(variance=trial.variance(), rule="paper"),
    SCALAR: lambda bench, trial: trial.sample(variance=trial.variance(channels="scalar")),
    MANY_DRIFT: lambda bench, trial: trial.sample(variance=trial.variance(MANY)),
    BIAS: lambda bench, trial: trial.sample(bias=calibrate.conditional_mean(trial.statistics())),
    STOCHASTIC: lambda bench, trial: trial.sample(
        bias=calibrate.conditional_mean(trial.statistics()),
        bias_mode="stochastic",
        variance=trial.variance(),
        strength=0.0,  # the variance is for the noise alone
    ),
    GAIN: lambda bench, trial: trial.sample(bias=calibrate.gain_inversion(trial.statistics())),
    MOMENTS: lambda bench, trial: trial.sample(maps=trial.maps()),
    MANY_MOMENTS: lambda bench, trial: trial.sample(maps=trial.maps(MANY)),
    ONE_MOMENTS: lambda bench, trial: trial.sample(maps=trial.maps(1)),
    BANDS: lambda bench, trial: trial.sample(maps=trial.band_maps(), apply=bands.mapped),
    BOTH: lambda bench, trial: trial.sample(maps=trial.maps(drift=True), variance=trial.variance()),
}
ABLATIONS = (SCALAR, MANY_DRIFT, BIAS, STOCHASTIC, MANY_MOMENTS)
ABLATED = HEAVY[0]  # the paper's own format for its Tables 3 and 4
QUICK_METHODS, QUICK_FORMATS = (FULL, PLAIN, DRIFT, MOMENTS), (HEAVY[0], HEAVY[2])


def methods(setting: Setting, form: Format) -> tuple[str, ...]:
    """In the order of the tables. Euler on ve has one rule, as `auto` is the paper's there."""
    paper = () if (setting.kind, setting.solver) == ("eps", "euler") else (PAPER,)
    if form is NOISE:
        return (PLAIN, DRIFT, *paper)
    if form in MILD:
        return (PLAIN, DRIFT, MOMENTS)
    more = ABLATIONS if form is ABLATED else (ONE_MOMENTS,) if form is TRANSFERRED else ()
    return (PLAIN, DRIFT, *paper, GAIN, MOMENTS, BOTH, *more)


def cells(kind: str) -> Iterator[Cell]:
    for setting in SETTINGS[kind]:
        for form in (*HEAVY, *MILD, NOISE):
            first = (FULL,) if form in (HEAVY[0], *[mild for mild in MILD if mild.exact]) else ()
            for method in (*first, *methods(setting, form)):
                quick = form in QUICK_FORMATS and method in QUICK_METHODS
                yield Cell(setting, form, method, METHODS[method], quick)


def transfers(kind: str) -> Iterator[Cell]:
    """Moment matching's maps elsewhere than where they were found."""
    home = SETTINGS[kind][0]
    for steps in (home.steps // 2, home.steps * 3 // 2):
        yield from _transfer(replace(home, steps=steps), _of_schedule(home))
    yield from _transfer(replace(home, scheduler=OTHER_SCHEDULER[kind]), _of_schedule(home))
    yield from _transfer(replace(home, cfg=5.0), {SAME: _from(home)})
    last, first = (replace(home, classes=half) for half in ("last", "first"))
    yield from _transfer(last, {OTHER_CLASSES: _from(first)})


def _transfer(setting: Setting, more: dict[str, Callable]) -> Iterator[Cell]:
    for method in (FULL, PLAIN):
        yield Cell(setting, TRANSFERRED, method, METHODS[method])
    for method, make in {OWN: METHODS[MOMENTS], **more}.items():
        yield Cell(setting, TRANSFERRED, method, make)


def _from(source: Setting) -> Callable[[Bench, Trial], Tensor]:
    return lambda bench, trial: trial.sample(maps=bench.trial(source, trial.form).maps())


def _of_schedule(source: Setting) -> dict[str, Callable[[Bench, Trial], Tensor]]:
    def by(rule: Callable) -> Callable[[Bench, Trial], Tensor]:
        def make(bench: Bench, trial: Trial) -> Tensor:
            there = bench.trial(source, trial.form)
            return trial.sample(maps=rule(there.maps(), there.sigmas, trial.sigmas))

        return make

    return {SHARED: by(calibrate.shared_out), INTERPOLATED: by(calibrate.interpolated)}


PARTS = {"quantized": cells, "transfer": transfers}
