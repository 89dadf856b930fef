"""Quantized models plain and corrected: which rows are made, and how."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from torch import Tensor

from gimbal.calibration.report import relative_error

from . import advice, bands, calibrate
from .formats import HEAVY, MILD, NumberFormat
from .judge import Judge
from .layers import Search
from .metrics import Gaussian, frechet
from .paired_sampler import NOISE, RUNS, Models, PairedSampler
from .rivals import deformable_schedule, ptqd, tac, tcec
from .subjects import OTHER_SCHEDULER, SETTINGS, Setting

MANY = 20  # runs of a calibration
COMPONENTS = 16  # principal components in the distances to full precision
FULL, PLAIN, DRIFT, MOMENTS, BOTH = "full precision", "quantized", "drift", "moments", "both"
BANDS = f"moments, {bands.COUNT} bands"
PAPER, GAIN = "drift, rule paper", "gain inversion"
SCALAR, MANY_DRIFT, MANY_MOMENTS = "drift, scalar", f"drift, K = {MANY}", f"moments, K = {MANY}"
ONE_MOMENTS = "moments, K = 1"
BIAS, STOCHASTIC = "bias correction", "bias correction, stochastic"
LAYERS, LAYERS_AND_MOMENTS, ADVISED = "layers", "layers and moments", "advised"
PTQD, TAC, TCEC, SHIFT = "PTQD", "TAC-Diffusion", "TCEC-style", "deformable schedule"
EITHER_SOLVER = (PTQD, BIAS)
RIVALS = (*EITHER_SOLVER, TAC, TCEC, SHIFT)  # the others fit one call of the model a step
OWN, SHARED, INTERPOLATED, OTHER_CLASSES = "own maps", "shared out", "interpolated", "maps of other classes"
SAME = "maps of cfg 3"
TRANSFERRED, DAILY = HEAVY[2], MILD[2]  # of the rows on transfers; the format that people run
VARIED = (TRANSFERRED, HEAVY[1], DAILY)  # where the layer correction is also looked for in other ways


class Bench:
    """A seed's samplers and references, kept while they are needed."""

    def __init__(self, models: Models, samples: int, seed: int, judge: Judge) -> None:
        self.models, self.samples, self.seed, self.judge = models, samples, seed, judge
        self._samplers: dict[tuple, PairedSampler] = {}
        self._references: dict[tuple, tuple[Tensor, dict[str, Gaussian]]] = {}

    def sampler(self, setting: Setting, form: NumberFormat) -> PairedSampler:
        key = (setting, form.name)
        if key not in self._samplers:
            self._samplers[key] = PairedSampler(self.models, setting, form, self.samples, self.seed)
        return self._samplers[key]

    def reference(self, setting: Setting, form: NumberFormat) -> tuple[Tensor, dict[str, Gaussian]]:
        """Full precision's samples, and their Gaussians."""
        key = (setting, form.exact)
        if key not in self._references:
            latents = self.sampler(setting, form).sample(full=True)
            self._references[key] = latents, _first(self.judge.gaussians(latents))
        return self._references[key]

    def measures(self, row: QuantizedRow) -> dict[str, float]:
        """Of the row's samples."""
        sampler = self.sampler(row.setting, row.form)
        latents = row.make(self, sampler)
        measures = self.judge.measures(latents, sampler.labels)
        if row.method != FULL:
            reference, gaussians = self.reference(row.setting, row.form)
            ours = _first(self.judge.gaussians(latents))
            measures |= {f"full_{space}": frechet(ours[space], theirs) for space, theirs in gaussians.items()}
            measures["mse"] = float((latents - reference).square().mean())
        if row.method == PLAIN and row.form is not NOISE:
            measures["error"] = relative_error(sampler.statistics())
        return measures


Make = Callable[[Bench, PairedSampler], Tensor]


def _first(gaussians: dict[str, Gaussian]) -> dict[str, Gaussian]:
    """Of the first principal components alone: these few samples say nothing of all the components' covariance."""
    n = COMPONENTS
    return {space: Gaussian(each.mean[:n], each.covariance[:n, :n]) for space, each in gaussians.items()}


@dataclass(frozen=True)
class QuantizedRow:
    """One row: a method in one setting and format. quick: also part of the short table."""

    setting: Setting
    form: NumberFormat
    method: str
    make: Make
    quick: bool = False

    @property
    def name(self) -> str:
        return name(self.setting, self.form, self.method)


def name(setting: Setting, form: NumberFormat, method: str) -> str:
    if method == FULL:
        return f"{setting.name}; {FULL}{', float32' if form.exact else ''}"
    return f"{setting.name}; {form.name}; {method}"


METHODS: dict[str, Make] = {
    FULL: lambda bench, sampler: bench.reference(sampler.setting, sampler.form)[0],
    PLAIN: lambda bench, sampler: sampler.sample(),
    DRIFT: lambda bench, sampler: sampler.sample(variance=sampler.variance()),
    PAPER: lambda bench, sampler: sampler.sample(variance=sampler.variance(), rule="paper"),
    SCALAR: lambda bench, sampler: sampler.sample(variance=sampler.variance(channels="scalar")),
    MANY_DRIFT: lambda bench, sampler: sampler.sample(variance=sampler.variance(MANY)),
    BIAS: lambda bench, sampler: sampler.sample(bias=calibrate.conditional_mean(sampler.statistics())),
    STOCHASTIC: lambda bench, sampler: sampler.sample(
        bias=calibrate.conditional_mean(sampler.statistics()),
        bias_mode="stochastic",
        variance=sampler.variance(),
        strength=0.0,  # the variance is for the noise alone
    ),
    GAIN: lambda bench, sampler: sampler.sample(bias=ptqd.split(sampler.statistics(), pooled=False)),
    MOMENTS: lambda bench, sampler: sampler.sample(maps=sampler.maps()),
    MANY_MOMENTS: lambda bench, sampler: sampler.sample(maps=sampler.maps(MANY)),
    ONE_MOMENTS: lambda bench, sampler: sampler.sample(maps=sampler.maps(1)),
    BANDS: lambda bench, sampler: sampler.sample(maps=sampler.band_maps(), apply=bands.mapped),
    LAYERS: lambda bench, sampler: sampler.sample(layers=sampler.layers()),
    LAYERS_AND_MOMENTS: lambda bench, sampler: _layers_and_moments(sampler),
    PTQD: lambda bench, sampler: sampler.sample(bias=ptqd.split(sampler.statistics())),
    TAC: lambda bench, sampler: sampler.rival(tac.fit),
    TCEC: lambda bench, sampler: sampler.rival(tcec.fit),
    SHIFT: lambda bench, sampler: sampler.rival(deformable_schedule.fit),
    BOTH: lambda bench, sampler: sampler.sample(maps=sampler.maps(drift=True), variance=sampler.variance()),
}
LAYER_VARIANTS = {  # of the layer correction: runs, and where and how finely it is looked for
    "layers, K = 1": (1, Search()),
    f"layers, K = {MANY}": (MANY, Search()),
    "layers, one range": (RUNS, Search(groups=1)),
    "layers, each step": (RUNS, Search(groups=None)),
    "layers, blocks": (RUNS, Search("block")),
    "layers, all linear": (RUNS, Search("linear")),
}
METHODS[ADVISED] = lambda bench, sampler: advice.advised(sampler, lambda name, other: METHODS[name](bench, other))
METHODS |= {
    name: lambda bench, sampler, how=how: sampler.sample(layers=sampler.layers(*how))
    for name, how in LAYER_VARIANTS.items()
}
ABLATIONS = (SCALAR, MANY_DRIFT, BIAS, STOCHASTIC, MANY_MOMENTS)
ABLATED = HEAVY[0]  # the paper's own format for its Tables 3 and 4
QUICK_METHODS, QUICK_FORMATS = (FULL, PLAIN, DRIFT, MOMENTS), (HEAVY[0], HEAVY[2])


def _layers_and_moments(sampler: PairedSampler) -> Tensor:
    found = sampler.layers()
    return sampler.sample(layers=found, maps=sampler.maps(layers=found))


def methods(setting: Setting, form: NumberFormat) -> tuple[str, ...]:
    """In the order of the tables. Euler on ve has one rule, as `auto` is the paper's there."""
    paper = () if (setting.kind, setting.solver) == ("eps", "euler") else (PAPER,)
    if form is NOISE:
        return (PLAIN, DRIFT, *paper)
    usual = (PLAIN, DRIFT, MOMENTS) if form in MILD else (PLAIN, DRIFT, *paper, GAIN, MOMENTS, BOTH)
    more = ABLATIONS if form is ABLATED else (ONE_MOMENTS,) if form is TRANSFERRED else ()
    return tuple(dict.fromkeys((*usual, *_added(setting, form), *more)))


def _added(setting: Setting, form: NumberFormat) -> Iterator[str]:
    """Rows that some cells alone have, to save time."""
    flow, euler = setting.kind == "flow", setting.solver == "euler"
    if not form.exact:
        yield from (LAYERS, LAYERS_AND_MOMENTS)
    if flow or (euler and not form.exact):
        yield ADVISED
    if form is TRANSFERRED or (flow and form in (ABLATED, DAILY)):
        yield from RIVALS if euler else EITHER_SOLVER
    if flow and form in VARIED:
        yield from LAYER_VARIANTS


def rows(kind: str) -> Iterator[QuantizedRow]:
    for setting in SETTINGS[kind]:
        for form in (*HEAVY, *MILD, NOISE):
            first = (FULL,) if form in (HEAVY[0], *[mild for mild in MILD if mild.exact]) else ()
            for method in (*first, *methods(setting, form)):
                quick = form in QUICK_FORMATS and method in QUICK_METHODS
                yield QuantizedRow(setting, form, method, METHODS[method], quick)


def transfers(kind: str) -> Iterator[QuantizedRow]:
    """Moment matching's maps elsewhere than where they were found."""
    home = SETTINGS[kind][0]
    for steps in (home.steps // 2, home.steps * 3 // 2):
        yield from _transfer(replace(home, steps=steps), _of_schedule(home))
    yield from _transfer(replace(home, scheduler=OTHER_SCHEDULER[kind]), _of_schedule(home))
    yield from _transfer(replace(home, cfg=5.0), {SAME: with_maps_of(home)})
    last, first = (replace(home, classes=half) for half in ("last", "first"))
    yield from _transfer(last, {OTHER_CLASSES: with_maps_of(first)})


def _transfer(setting: Setting, more: dict[str, Callable]) -> Iterator[QuantizedRow]:
    for method in (FULL, PLAIN):
        yield QuantizedRow(setting, TRANSFERRED, method, METHODS[method])
    for method, make in {OWN: METHODS[MOMENTS], **more}.items():
        yield QuantizedRow(setting, TRANSFERRED, method, make)


def with_maps_of(source: Setting) -> Make:
    return lambda bench, sampler: sampler.sample(maps=bench.sampler(source, sampler.form).maps())


def _of_schedule(source: Setting) -> dict[str, Make]:
    def by(rule: Callable) -> Make:
        def make(bench: Bench, sampler: PairedSampler) -> Tensor:
            calibrated = bench.sampler(source, sampler.form)
            return sampler.sample(maps=rule(calibrated.maps(), calibrated.sigmas, sampler.sigmas))

        return make

    return {SHARED: by(calibrate.shared_out), INTERPOLATED: by(calibrate.interpolated)}


PARTS = {"quantized": rows, "transfer": transfers}
