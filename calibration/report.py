"""What statistics say: figures per step and channel, how stable they are over the runs, tables of both, and a verdict."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from . import gains, layer_fields, trial_text
from .gains import Rule
from .levels import levels
from .maps_table import maps_table
from .moments import JointMoments
from .residual import Residual
from .statistics import QDriftStatistics
from .text import percent

SUBSET = 5  # runs, which the paper found to suffice (Q-Drift Sec. 5.4)
MOST_CHANNELS = 16  # whose gains the text table shows one by one
# Relative errors between which the formats of docs/RESULTS.md lie (its table of how far they are from full precision).
SLIGHT = 0.1  # below it 8 bit on flow (5 to 6 %): nothing to see. Above it W4A8, Q4_0 and 8 bit on eps: a little
VISIBLE = 0.3  # above it 4 bit with a low-rank branch in a study of smaller models: Q-Drift helped on VE
DAMAGE = 0.5  # above it 4-bit activations (flow 55 to 76 %, eps more): Q-Drift did harm on flow and nothing on eps


@dataclass(frozen=True, eq=False)
class Figures:
    """S noise levels, C channels, float64; the statistics' own order, from noise to picture.

    Attributes:
        sigma: (S,).
        variance, slope: (S, C), V and a.
        rule: that gives the gains.
        gain: (S, C), c from each level to the next by the default rule; the last level's step ends at 0.
        error: (S,), relative error of all channels together.
        error_db: (S,), signal to error in decibels; noise_db: (S,), signal to V, the part that may act as noise.
        noise_share: (S,), V as a share of the error's power.
        spread: for a number of runs K, (S,) lowest and highest mean gain that K of the runs give; () without runs.
    """

    sigma: Tensor
    variance: Tensor
    slope: Tensor
    rule: Rule
    gain: Tensor
    error: Tensor
    error_db: Tensor
    noise_db: Tensor
    noise_share: Tensor
    spread: tuple[tuple[int, Tensor, Tensor], ...]


def figures(statistics: QDriftStatistics) -> Figures:
    moments = [statistics.moments(i) for i in range(len(statistics.sigma))]
    sigma, variance = statistics.sigma, torch.stack([each.conditional_variance() for each in moments])
    rule, runs = Rule.of(statistics), statistics.provenance.runs
    power = torch.stack([each.error_power().sum() for each in moments])
    error = torch.tensor([float(each.pooled().relative_error()) for each in moments], dtype=torch.float64)
    signal = torch.stack([_signal_power(each).sum() for each in moments])
    return Figures(
        sigma,
        variance,
        torch.stack([each.slope() for each in moments]),
        rule,
        rule.gains(variance),
        error,
        10 * (signal / power).log10(),
        10 * (signal / variance.sum(1)).log10(),
        (variance.sum(1) / power).where(power > 0, 0.0),
        gains.spread(statistics, rule, sorted({1, min(SUBSET, runs), runs})),
    )


def _signal_power(moments: JointMoments) -> Tensor:
    """E[eps^2] of full precision, (C,)."""
    square, product, error = moments.m2.unbind()
    deviations = (square - 2 * product + error).clamp(min=0.0)
    return deviations / moments.count + (moments.mean[0] - moments.mean[1]).square()


def stability(statistics: QDriftStatistics) -> str:
    """One sentence: how much the gains depend on which runs they come from."""
    found = {k: (low, high) for k, low, high in figures(statistics).spread}
    runs = statistics.provenance.runs
    if not found or runs < 2:
        return "One run: how stable the gains are cannot be said; calibrate with 5 runs."
    parts = []
    for k, (low, high) in found.items():
        if k < runs:
            middle = (low + high) / 2
            wide = float(((high - low) / 2 / middle).where(middle > 0, 0.0).max())
            parts.append(f"{'any one' if k == 1 else f'any {k}'} would give c within {percent(wide)} of its middle")
    return f"Stability over {runs} runs: {'; '.join(parts)}, at every step."


def shape_sentence(residuals: Sequence[Residual] | None) -> str:
    """How Gaussian the part of the error is that may act as noise."""
    if not residuals:
        return "How Gaussian the error is cannot be read from a file: the report of the calibration itself shows it."
    values = [value for value in (each.excess_kurtosis() for each in residuals) if not math.isnan(value)]
    if not values:
        return "There is no random part of the error whose shape could be looked at."
    low, high = min(values), max(values)
    word = (
        "close to Gaussian"
        if high < 0.5
        else "heavier in the tails than a Gaussian"
        if high < 3
        else "far from Gaussian"
    )
    return f"The error beside its regression is {word}: excess kurtosis {low:.2g} to {high:.2g} (0 is Gaussian)."


def relative_error(statistics: QDriftStatistics) -> float:
    """The error as a share of the signal: root mean square over all sigmas of all channels' together."""
    errors = [float(statistics.moments(i).pooled().relative_error()) for i in range(len(statistics.sigma))]
    return math.sqrt(sum(error**2 for error in errors) / len(errors))


def noise_share(statistics: QDriftStatistics) -> float:
    """At most this share of the error's power acts as noise: V summed over sigmas and channels, by the whole."""
    moments = [statistics.moments(i) for i in range(len(statistics.sigma))]
    power = sum(float(each.error_power().sum()) for each in moments)
    noise = sum(float(each.conditional_variance().sum()) for each in moments)
    return noise / power if power else 0.0


def verdict(statistics: QDriftStatistics) -> str:
    error = relative_error(statistics)
    if error == 0:
        return "The error is exactly 0: the two models are the same, or the quantized one was not used."
    start = f"The error is {percent(error)} of the signal"
    if statistics.trial is not None:
        return f"{start}. {trial_text.sentence(statistics.trial)}"
    if error < SLIGHT:
        return f"{start}: expect no visible change."
    systematic = (
        f"it corrects only what acts as noise, here at most {percent(noise_share(statistics))} of the error's power, "
        "and real quantization error is mostly systematic"
    )
    if error < VISIBLE:
        return f"{start}: expect slight differences from full precision, and little from Q-Drift; {systematic}."
    if error >= DAMAGE:
        return (
            f"{start}: expect visible damage that Q-Drift does not repair and may add to; {systematic}; "
            "try moment matching or a finer quantization."
        )
    if statistics.provenance.path == "flow":
        return (
            f"{start}: expect visible differences, and little from Q-Drift, as measured on flow models; {systematic}."
        )
    return (
        f"{start}: expect visible differences; Q-Drift may bring the images as a whole a little closer to full "
        f"precision, not each single one; {systematic}."
    )


def describe(statistics: QDriftStatistics) -> str:
    origin = statistics.provenance
    lines = [
        f"Q-Drift statistics: {origin.quantized_model or 'a quantized model'} "
        f"against {origin.full_model or 'full precision'}",
        f"{origin.path}, {statistics.channels} channels, {levels(statistics.sigma)}, {origin.runs} runs, "
        f"{'with' if statistics.state_sigma is not None else 'without'} moment matching, "
        f"{layer_fields.described(statistics.layers) if statistics.layers is not None else 'without layer correction'}",
        "",
    ]
    shown = {name: text for name, text in origin.to_metadata().items() if text and name != "sources"}
    lines += [f"{name:>16}  {_short(text)}" for name, text in shown.items()]
    lines += ["", f"{'sigma':>10} {'count':>12} {'V mean':>10} {'V min':>10} {'V max':>10} {'slope':>8} {'error':>8}"]
    for i, sigma in enumerate(statistics.sigma.tolist()):
        moments = statistics.moments(i)
        v = moments.conditional_variance()
        figures = " ".join(f"{float(figure):10.4g}" for figure in (v.mean(), v.min(), v.max()))
        error = float(moments.pooled().relative_error())
        lines.append(f"{sigma:10.4g} {moments.count:12d} {figures} {float(moments.slope().mean()):8.3f} {error:8.2%}")
    if statistics.plan is not None:
        lines += statistics.plan.table()
    if statistics.trial is not None:
        lines += trial_text.table(statistics.trial)
    lines += ["", verdict(statistics)]
    return "".join(f"{_printable(line)}\n" for line in lines)


def _short(text: str) -> str:
    return text if len(text) <= 100 else f"{text[:97]}..."


def _printable(text: str) -> str:
    """A file's texts could hold what steers a terminal."""
    return "".join(letter if letter.isprintable() else " " for letter in text)


def text(statistics: QDriftStatistics, residuals: Sequence[Residual] | None = None) -> str:
    """Everything as text: settings, V and slope, gains per step and channel, stability, what to expect. Ends in a newline."""
    shown = figures(statistics)
    settings, _, _ = describe(statistics).rpartition("\n\n")  # the verdict comes last here
    for _ in filter(None, (statistics.trial, statistics.plan)):
        settings, _, _ = settings.rpartition("\n\n")  # and the trial and the plan before it
    lines = [settings, "", rule_sentence(statistics, shown.rule), ""]
    lines += table(shown)
    lines += ["", "S/E: signal to error. S/V: signal to V, the part of the error that may act as noise."]
    maps = statistics.state_map()
    if maps is not None:
        lines += ["", "Moment matching: x -> scale x + shift after each step", "", *maps_table(maps)]
    if statistics.plan is not None:
        lines += statistics.plan.table()
    if statistics.trial is not None:
        lines += trial_text.table(statistics.trial)
    lines += ["", stability(statistics), shape_sentence(residuals), "", verdict(statistics)]
    return "\n".join(lines) + "\n"


def rule_sentence(statistics: QDriftStatistics, rule: Rule) -> str:
    """What the gains in a report are."""
    solver = statistics.provenance.solver
    other = "" if solver in ("", rule.solver) else f" ({solver}'s own follow from the same V when it is used)"
    return (
        f"Gain c by rule auto: {rule.solver} on path {rule.path}, {rule.equation}, from each level to the next{other}"
    )


def table(shown: Figures) -> list[str]:
    columns = ("sigma", 9), ("error", 8), ("S/E dB", 7), ("S/V dB", 7), ("c mean", 9), ("c min", 9), ("c max", 9)
    lines = ["step" + "".join(f" {name:>{width}}" for name, width in columns)]
    for i, gain in enumerate(shown.gain):
        row = f"{i + 1:4d} {float(shown.sigma[i]):9.4g} {float(shown.error[i]):8.2%}"
        row += f" {float(shown.error_db[i]):7.1f} {float(shown.noise_db[i]):7.1f}"
        lines.append(row + "".join(f" {float(value):9.2e}" for value in (gain.mean(), gain.min(), gain.max())))
    channels = shown.gain.shape[1]
    if channels > MOST_CHANNELS:
        return lines
    lines += ["", "step" + "".join(f" {f'c[{c}]':>7}" for c in range(channels))]
    lines += [f"{i + 1:4d}" + "".join(f" {float(value):7.1e}" for value in gain) for i, gain in enumerate(shown.gain)]
    return lines
