"""What statistics look like: figures per step and channel, how stable they are over the runs, and tables of both."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from . import summary, trial
from .moments import JointMoments
from .residual import Residual
from .statistics import QDriftStatistics

SUBSET = 5  # runs, which the paper found to suffice (Q-Drift Sec. 5.4)
MOST_CHANNELS = 16  # whose gains the text table shows one by one


@dataclass(frozen=True, eq=False)
class Figures:
    """S noise levels, C channels, float64; the statistics' own order, from noise to picture.

    Attributes:
        sigma: (S,).
        variance, slope: (S, C), V and a.
        gain: (S, C), Euler's c between one level and the next (Q-Drift Eq. 22); the last level's step ends at 0.
        error: (S,), relative error of all channels together.
        error_db: (S,), signal to error in decibels; noise_db: (S,), signal to V, the part that may act as noise.
        noise_share: (S,), V as a share of the error's power.
        spread: for a number of runs K, (S,) lowest and highest mean gain that K of the runs give; () without runs.
    """

    sigma: Tensor
    variance: Tensor
    slope: Tensor
    gain: Tensor
    error: Tensor
    error_db: Tensor
    noise_db: Tensor
    noise_share: Tensor
    spread: tuple[tuple[int, Tensor, Tensor], ...]


def figures(statistics: QDriftStatistics) -> Figures:
    moments = [statistics.moments(i) for i in range(len(statistics.sigma))]
    sigma, variance = statistics.sigma, torch.stack([each.conditional_variance() for each in moments])
    share = step_share(sigma)
    power = torch.stack([each.error_power().sum() for each in moments])
    error = torch.tensor([float(each.pooled().relative_error()) for each in moments], dtype=torch.float64)
    signal = torch.stack([_signal_power(each).sum() for each in moments])
    return Figures(
        sigma,
        variance,
        torch.stack([each.slope() for each in moments]),
        variance * share[:, None],
        error,
        10 * (signal / power).log10(),
        10 * (signal / variance.sum(1)).log10(),
        (variance.sum(1) / power).where(power > 0, 0.0),
        _spread(statistics, share),
    )


def step_share(sigma: Tensor) -> Tensor:
    """|dsigma| / (2 sigma) of the step from each level to the next, the last one's to 0: Eq. 22 without V, (S,)."""
    following = torch.cat([sigma[1:], sigma.new_zeros(1)])
    return (sigma - following) / (2 * sigma)


def _signal_power(moments: JointMoments) -> Tensor:
    """E[eps^2] of full precision, (C,)."""
    square, product, error = moments.m2
    deviations = (square - 2 * product + error).clamp(min=0.0)
    return deviations / moments.count + (moments.mean[0] - moments.mean[1]).square()


def _spread(statistics: QDriftStatistics, share: Tensor) -> tuple[tuple[int, Tensor, Tensor], ...]:
    """Over every group of K runs that follow one another in a ring; a group's V is the mean of its runs' own."""
    if statistics.run_variance is None:
        return ()
    gains = statistics.run_variance.double().mean(2) * share  # (R, S)
    runs = len(gains)
    spread = []
    for k in sorted({1, min(SUBSET, runs), runs}):
        ring = torch.cat([gains, gains[: k - 1]])
        groups = ring.unfold(0, k, 1).mean(-1)[:runs] if k < runs else gains.mean(0, keepdim=True)
        spread.append((k, groups.amin(0), groups.amax(0)))
    return tuple(spread)


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
            parts.append(
                f"{'any one' if k == 1 else f'any {k}'} would give c within {summary.percent(wide)} of its middle"
            )
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


def text(statistics: QDriftStatistics, residuals: Sequence[Residual] | None = None) -> str:
    """Everything as text: settings, V and slope, gains per step and channel, stability, verdict. Ends in a newline."""
    shown = figures(statistics)
    settings, _, _ = statistics.describe().rpartition("\n\n")  # the verdict comes last here
    if statistics.trial is not None:
        settings, _, _ = settings.rpartition("\n\n")  # and the trial before it
    lines = [settings, "", "Euler gain c = |dsigma|/(2 sigma) V (Eq. 22), from each level to the next", ""]
    lines += table(shown)
    lines += ["", "S/E: signal to error. S/V: signal to V, the part of the error that may act as noise."]
    if statistics.state_sigma is not None:
        lines += ["", "Moment matching: x -> scale x + shift after each step", "", *maps_table(statistics)]
    if statistics.trial is not None:
        lines += trial.table(statistics.trial)
    lines += ["", stability(statistics), shape_sentence(residuals), "", statistics.verdict()]
    return "\n".join(lines) + "\n"


def maps_table(statistics: QDriftStatistics) -> list[str]:
    columns = ("sigma", 9), ("scale", 9), ("min", 9), ("max", 9), ("|shift|", 9), ("max", 9)
    lines = ["step" + "".join(f" {name:>{width}}" for name, width in columns)]
    rows = zip(statistics.state_sigma, statistics.state_scale, statistics.state_shift.abs(), strict=True)
    for i, (sigma, scale, shift) in enumerate(rows):
        values = (sigma, scale.mean(), scale.min(), scale.max(), shift.mean(), shift.max())
        lines.append(f"{i + 1:4d}" + "".join(f" {float(value):9.4g}" for value in values))
    return lines


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
