"""A precision plan under a budget, found as the node Q-Drift Calibrate finds it: each part left unrounded alone."""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import fmean, stdev

from torch import Tensor, nn

from gimbal.core.precision_plan import Candidate, Exemption, PrecisionPlan, choose, layer_groups, step_ranges

from .formats import RoundedLinear
from .paired_sampler import PairedSampler

RUNS, MOST_RANGES, SMALLEST_GROUP = 2, 10, 1 / 12  # host/calibrating/planning.py
Sample = Callable[[PrecisionPlan, Tensor, Tensor], Tensor]  # plan, labels and first states to final latents


def find(sampler: PairedSampler, budget: float, sample: Sample) -> PrecisionPlan:
    """The plan of at most this share of the rounded multiply-adds; maybe an empty one."""
    labels, x = (part[:RUNS] for part in sampler.calibration_draw())
    work, sigmas = multiply_adds(sampler.quantized.network, lambda: sample(PrecisionPlan(), labels, x)), sampler.sigmas
    wanted = sampler.full_from(labels, x)

    def error(plan: PrecisionPlan) -> list[float]:
        return (sample(plan, labels, x) - wanted).square().flatten(1).mean(1).tolist()

    plain = error(PrecisionPlan())
    candidates = []
    for exemption in exemptions(sigmas, work, budget):
        gains = [1.0 - after / before for after, before in zip(error(PrecisionPlan((exemption,))), plain, strict=True)]
        candidates.append(Candidate(exemption, fmean(gains), stdev(gains) / math.sqrt(len(gains))))
    return choose(candidates, sigmas[:-1], work, budget)


def exemptions(sigmas: list[float], work: dict[str, int], budget: float) -> list[Exemption]:
    steps = len(sigmas) - 1
    size = min(math.ceil(steps / MOST_RANGES), int(budget * steps + 1e-9))
    ranges = step_ranges(sigmas, size) if size else []
    return [*ranges, *layer_groups(work, min(budget, max(SMALLEST_GROUP, budget / 2)))]


def multiply_adds(network: nn.Module, call: Callable[[], object]) -> dict[str, int]:
    """Of each rounded layer in one call of the network; `call` makes one or more."""
    found: dict[str, int] = {}

    def count(name: str) -> Callable[[nn.Module, object, Tensor], None]:
        def add(module: nn.Module, _: object, output: Tensor) -> None:
            found.setdefault(name, output[0].numel() * module.weight.residual.shape[1])

        return add

    hooks = [
        module.register_forward_hook(count(name))
        for name, module in network.named_modules()
        if isinstance(module, RoundedLinear)
    ]
    try:
        call()
    finally:
        for hook in hooks:
            hook.remove()
    return found
