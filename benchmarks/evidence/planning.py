"""A precision plan under a budget, found as the node Q-Drift Calibrate finds it: each part left unrounded alone."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from gimbal.core.precision_plan import Candidate, PrecisionPlan, choose, parts_within

from .formats import RoundedLinear
from .paired_sampler import PairedSampler

RUNS = 2  # as in host/calibrating/planning.py, which needs ComfyUI to be imported
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
    for exemption in parts_within(budget, sigmas, work):
        candidates.append(Candidate.measured(exemption, error(PrecisionPlan((exemption,))), plain))
    return choose(candidates, sigmas[:-1], work, budget)


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
