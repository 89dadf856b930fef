"""What can be known of a corrected sampling run before it: combinations, gains, bias terms (METHODS.md 4.2)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from .ancestral import ancestral_steps
from .coefficients import Coefficients, check_schedule, read_coefficients
from .gain_formulas import Formula, PathName, Rule, alpha_ratio, automatic_rule, gain_formula, gains_of
from .linear_samplers import Sampler, find_solver
from .multistep import Output, Step, linear_steps, solver_history
from .qdrift import as_variance, cap_gain
from .shapes import to_float64

BiasMode = Literal["deterministic", "stochastic"]
Variance = Callable[[float], Tensor]  # sigma -> (C,) or ()
Bias = Callable[[float], tuple[Tensor, Tensor, Tensor]]  # sigma -> slope, mean of the output, mean of its error
CHOICES = {"path": get_args(PathName), "rule": get_args(Rule), "bias_mode": get_args(BiasMode)}


@dataclass(frozen=True, eq=False)
class BiasTerms:
    """A derivative d becomes d - (offset + slope d + spread n), n standard normal. (calls, C), float64 on the CPU."""

    slope: Tensor
    offset: Tensor
    spread: Tensor | None


@dataclass(frozen=True, eq=False)
class Plan:
    """A corrected sampler on one schedule: numbers only, no state, good for any number of runs.

    steps: in order. output: what the solver's history holds.
    equation: that gives the gains; empty if there are none to give.
    gains: (steps, C), or (steps, 1) for all channels alike; float64 on the CPU; after strength and cap.
    alpha_ratios: by step, the multiple of its first state that the gain leaves alone: alpha_end / alpha, as the increment
        that grows is that of y = x / alpha.
    capped: steps whose gain hit the cap.
    """

    name: str
    path: PathName
    equation: str
    output: Output
    steps: tuple[Step, ...]
    gains: Tensor
    alpha_ratios: tuple[float, ...]
    capped: tuple[int, ...]
    bias: BiasTerms | None

    def describe(self) -> str:
        """One line for a log: the sampler, its path, what rules its gains, their range, and the cap if one was hit."""
        words = [", ".join(filter(None, (self.name, f"path {self.path}", self.equation, f"{len(self.steps)} steps")))]
        if self.equation:
            words[0] += f", c {float(self.gains.min()):.4g} to {float(self.gains.max()):.4g}"
        if self.capped:
            words.append(f"capped in {len(self.capped)} steps, the first being step {self.capped[0]}")
        if self.bias is not None:
            words.append("bias correction " + ("deterministic" if self.bias.spread is None else "stochastic"))
        return "; ".join(words)


def make_plan(
    solver: str | Sampler,
    sigmas: Tensor | Sequence[float],
    *,
    path: PathName = "ve",
    variance: Variance | None = None,
    strength: float = 1.0,
    rule: Rule = "auto",
    cap: float = 1.0,
    options: Mapping[str, Any] | None = None,
    model_sampling: object = None,
    bias: Bias | None = None,
    bias_mode: BiasMode = "deterministic",
) -> Plan:
    """Work out a sampler's corrected form on a schedule. Waits for the device if sigmas or statistics are on one.

    Source: Q-Drift Eq. 22-23, 27, 35-39, 46-48. With y = x / alpha, a step y -> y + S becomes y -> y + (1 + c) S.
      paper        Euler: Eq. 22 on ve; Eq. 27 on flow, with x itself in the place of y. Others: Eq. 37, on flow too.
      marginal     Eq. 37 for all. On flow this is V_eps = (1 - sigma)^2 V_v in sigma_bar = sigma / (1 - sigma).
      accumulated  ours: Eq. 36 with the variance that a step really adds to y. Eq. 37 sums the squared weights of
                   each step by itself, but a multistep solver uses an output again, with a negative weight, and so
                   takes part of its error back: for errors that are independent from call to call, Eq. 37
                   over-corrects DPM-Solver++(2M) about 2.5 times. One call a step: Eq. 37. Never below 0.
      auto         accumulated where a solver uses outputs of earlier steps again; else paper on ve, marginal on flow.
    Which of them rules depends on the solver, not on the number of steps: DPM-Solver++(2M) in one step is not Euler.
    Weights w_j are those of the errors that a step takes from the outputs as its solver keeps them, denoised or
    derivative (Eq. 43 for DPM-Solver++(2M)); stages between step ends are left alone. A step that starts at flow's
    sigma = 1 has c = 0, the limit of Eq. 37.

    Args:
        solver: name in solvers.SOLVERS, "euler_ancestral", or a function in k-diffusion's signature.
        sigmas: (steps + 1,), not rising, >= 0; at most 1 on flow. May start low and end above 0.
        variance: sigma -> V of the model's error there, (C,) or () for all channels alike, >= 0: of eps on ve, of the
            velocity on flow, either way of (x - denoised)/sigma. None: no gain.
        strength: multiplies c; 0 is no gain. cap: bounds |c| after that, > 0.
        options: keyword arguments of the sampler function; eta and s_noise for "euler_ancestral".
        model_sampling: ComfyUI's, for sampler functions that ask for it.
        bias: sigma -> (slope, mean_eps_hat, mean_delta), each (C,) or (): the conditional mean of the error
            (Eq. 46-48) is taken off every output; `stochastic` takes off a sample of it, of variance V, and then there
            is no gain: it would answer for the same V a second time. None: nothing.
    Raises:
        ValueError: the sampler has no corrected form (read_coefficients, linear_steps say why); sigmas outside the
            path; statistics that are negative, not finite or of changing shape; an unknown option.
    """
    schedule = check_schedule(sigmas)
    _check_options(schedule, strength, variance, bias_mode, path=path, rule=rule)
    name, output, steps, reused = _solver_steps(solver, schedule, path, options or {}, model_sampling)
    levels = [stage.sigma for step in steps for stage in step.stages]
    variances = None if variance is None else _table("variance", levels, variance)
    formula = gain_formula(automatic_rule(path, reused) if rule == "auto" else rule, path, steps, reused)
    gains = to_float64(torch.zeros(len(steps), 1, device="cpu"))
    drawn = bias is not None and bias_mode == "stochastic"
    gained = variances is not None and not drawn
    if variances is not None and gained:
        gains = strength * gains_of(formula, output, steps, path, variances)
    capped = [cap_gain(gain, cap) for gain in gains]
    terms = None
    if bias is not None:
        spread = variances.sqrt() if variances is not None and drawn else None
        terms = _bias_terms(levels, bias, spread)
    return Plan(
        name,
        path,
        formula.value if gained else "",
        output,
        steps,
        torch.stack([gain for gain, _ in capped]),
        tuple(1.0 if formula is Formula.EULER_FLOW else alpha_ratio(path, step) for step in steps),
        tuple(i for i, (_, hit) in enumerate(capped) if hit),
        terms,
    )


def _check_options(
    schedule: Sequence[float], strength: float, variance: Variance | None, bias_mode: str, **choices: str
) -> None:
    for option, value in {**choices, "bias_mode": bias_mode}.items():
        if value not in CHOICES[option]:
            raise ValueError(f"make_plan: {option} is {value!r}; choose one of {', '.join(CHOICES[option])}.")
    if not math.isfinite(strength):
        raise ValueError(f"make_plan: strength is {strength}; give a finite value (0 is no correction).")
    if choices["path"] == "flow" and schedule[0] > 1.0:
        raise ValueError(f"make_plan: sigmas begin at {schedule[0]}, path flow ends at 1; is the model a flow model?")
    if bias_mode == "stochastic" and variance is None:
        raise ValueError("make_plan: the stochastic bias correction draws noise of variance V; give variance too.")


def _solver_steps(
    solver: str | Sampler,
    schedule: tuple[float, ...],
    path: PathName,
    options: Mapping[str, Any],
    model_sampling: object,
) -> tuple[str, Output, tuple[Step, ...], bool]:
    """Name, kind of history, steps, and whether the solver takes outputs of earlier steps again."""
    if solver == "euler_ancestral":
        return solver, "derivative", ancestral_steps(path, schedule, **options), False
    function = find_solver(solver)

    def read(sigmas: Sequence[float]) -> Coefficients:
        return read_coefficients(function, sigmas, model_sampling=model_sampling, options=options)

    coefficients = read(schedule)
    history = solver_history(coefficients, read)
    return coefficients.name, *linear_steps(coefficients, history.output), history.reused


def _table(name: str, levels: Sequence[float], of_sigma: Callable[[float], Tensor | float]) -> Tensor:
    rows = [as_variance(name, of_sigma(level)).flatten() for level in levels]
    return _stack(name, rows)


def _stack(name: str, rows: list[Tensor]) -> Tensor:
    if len({row.shape for row in rows}) != 1:
        shapes = sorted({len(row) for row in rows})
        raise ValueError(f"make_plan: {name} has {shapes} channels, depending on sigma; give the same number for all.")
    return torch.stack(rows)


def _bias_terms(levels: Sequence[float], bias: Bias, spread: Tensor | None) -> BiasTerms:
    slopes, offsets = [], []
    for level in levels:
        slope, mean, mean_error = (to_float64(value).flatten() for value in bias(level))
        offset = mean_error - slope * mean
        if not (offset.isfinite().all() and slope.isfinite().all()):
            raise ValueError(f"make_plan: bias at sigma {level} is not finite; calibrate again.")
        slopes.append(slope)
        offsets.append(offset)
    return BiasTerms(_stack("bias", slopes), _stack("bias", offsets), spread)
