"""The formulas of Q-Drift's gains: which one a rule asks for, and its gains on a solver's steps (METHODS.md 4.2)."""

from __future__ import annotations

import math
from enum import Enum
from typing import Literal

import torch
from torch import Tensor

from .multistep import Output, Step, accumulated_variance
from .qdrift import euler_gain, gain_from_variance, quadrature_gain

PathName = Literal["ve", "flow"]
Rule = Literal["auto", "paper", "marginal", "accumulated"]


class Formula(Enum):
    """By value: its name for people, as `Plan.equation` and reports print it."""

    EULER = "Eq. 22"
    EULER_FLOW = "Eq. 27"
    QUADRATURE = "Eq. 37"
    ACCUMULATED = "Eq. 36 accumulated"


def automatic_rule(path: PathName, reused: bool) -> Rule:
    """What rule "auto" stands for. reused: whether the solver takes outputs of earlier steps again."""
    if reused:
        return "accumulated"
    return "paper" if path == "ve" else "marginal"


def gain_formula(rule: Rule, path: PathName, steps: tuple[Step, ...], reused: bool) -> Formula:
    """The formula by which a rule, other than auto, gives a solver's gains. reused: as for `automatic_rule`."""
    if rule == "accumulated":
        return Formula.ACCUMULATED
    if rule == "paper" and not reused and all(_is_euler(step) for step in steps):
        return Formula.EULER if path == "ve" else Formula.EULER_FLOW
    return Formula.QUADRATURE


def _is_euler(step: Step) -> bool:
    """linear_steps writes a one-term method with derivatives. A step of no length has no term."""
    length = step.sigma_end - step.sigma
    weights = [weight for call, weight in step.mix.terms if call == step.stages[0].call]
    one_term = len(weights) == len(step.mix.terms) and len(step.stages) == 1 and step.mix.carry == 1.0
    return one_term and math.isclose(sum(weights), length, rel_tol=1e-6, abs_tol=1e-12)


def gains_of(formula: Formula, output: Output, steps: tuple[Step, ...], path: PathName, variances: Tensor) -> Tensor:
    """Gains c (steps, C), before strength and cap, of variances (calls, C)."""
    if formula in (Formula.EULER, Formula.EULER_FLOW):
        gains = [euler_gain(step.sigma, step.sigma_end, variances[step.stages[0].call]) for step in steps]
    elif formula is Formula.QUADRATURE:
        gains = [_quadrature(output, steps, step, path, variances) for step in steps]
    else:
        alphas = [_alpha(path, stage.sigma) for step in steps for stage in step.stages]
        ends = [_alpha(path, step.sigma_end) or 1.0 for step in steps]  # at alpha 0 the gain is 0 whatever this gives
        held = accumulated_variance(steps, output, alphas, ends, variances)
        added = torch.cat([held[:1], held.diff(dim=0)])
        bars = [(_sigma_bar(path, step.sigma), _sigma_bar(path, step.sigma_end)) for step in steps]
        gains = [gain_from_variance(row, *bar).clamp(min=0.0) for row, bar in zip(added, bars, strict=True)]
    return torch.stack(gains)


def _quadrature(output: Output, steps: tuple[Step, ...], step: Step, path: PathName, variances: Tensor) -> Tensor:
    alpha_end = _alpha(path, step.sigma_end) or 1.0  # at 0 sigma_bar is inf, and the gain 0
    levels = {stage.call: stage.sigma for other in steps for stage in other.stages}
    per_error = {call: 1.0 if output == "derivative" else levels[call] for call, _ in step.mix.terms}
    weights = [weight * per_error[call] / alpha_end for call, weight in step.mix.terms]
    of_terms = variances[[call for call, _ in step.mix.terms]]
    return quadrature_gain(weights, of_terms, _sigma_bar(path, step.sigma), _sigma_bar(path, step.sigma_end))


def _alpha(path: PathName, sigma: float) -> float:
    return 1.0 - sigma if path == "flow" else 1.0


def _sigma_bar(path: PathName, sigma: float) -> float:
    alpha = _alpha(path, sigma)
    return sigma / alpha if alpha > 0.0 else math.inf


def alpha_ratio(path: PathName, step: Step) -> float:
    """alpha_end / alpha of a step; 0 where it starts at alpha 0."""
    alpha = _alpha(path, step.sigma)
    return _alpha(path, step.sigma_end) / alpha if alpha > 0.0 else 0.0
