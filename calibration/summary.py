"""What the statistics say, in words and in a table."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from torch import Tensor

from . import trial

if TYPE_CHECKING:
    from .statistics import QDriftStatistics

# Relative errors between which the formats of docs/RESULTS.md lie (its table of how far they are from full precision).
SLIGHT = 0.1  # below it 8 bit on flow (5 to 6 %): nothing to see. Above it W4A8, Q4_0 and 8 bit on eps: a little
VISIBLE = 0.3  # above it 4 bit with a low-rank branch in a study of smaller models: Q-Drift helped on VE
DAMAGE = 0.5  # above it 4-bit activations (flow 55 to 76 %, eps more): Q-Drift did harm on flow and nothing on eps


def levels(sigma: Tensor) -> str:
    return f"{len(sigma)} sigmas from {sigma[0]:.4g} to {sigma[-1]:.4g}"


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
        return f"{start}. {trial.sentence(statistics.trial)}"
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


def percent(share: float) -> str:
    if not math.isfinite(share):
        return "more than all"
    value = 100 * share
    if value < 0.01:
        return "less than 0.01 %"
    return f"{value:.0f} %" if value >= 10 else f"{value:.2g} %"


def describe(statistics: QDriftStatistics) -> str:
    origin = statistics.provenance
    lines = [
        f"Q-Drift statistics: {origin.quantized_model or 'a quantized model'} "
        f"against {origin.full_model or 'full precision'}",
        f"{origin.path}, {statistics.channels} channels, {levels(statistics.sigma)}, {origin.runs} runs, "
        f"{'with' if statistics.state_sigma is not None else 'without'} moment matching",
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
    if statistics.trial is not None:
        lines += trial.table(statistics.trial)
    lines += ["", verdict(statistics)]
    return "".join(f"{_printable(line)}\n" for line in lines)


def _short(text: str) -> str:
    return text if len(text) <= 100 else f"{text[:97]}..."


def _printable(text: str) -> str:
    """A file's texts could hold what steers a terminal."""
    return "".join(letter if letter.isprintable() else " " for letter in text)
