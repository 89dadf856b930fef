"""A sampler's coefficients as steps: each state from the last one and a few earlier model outputs.

Every solver remembers its past in one of two ways: as denoised outputs D_j (DPM-Solver++, RES) or as derivatives
d_j = (x_j - D_j) / sigma_j (Euler, Heun, Adams, DEIS), which are eps on the VE path and the velocity on the flow path.
The same coefficients can be written either way; the solver's own is the one with the shorter memory. It matters once
states are corrected: the history then holds the outputs at the corrected states. On a schedule of a few steps both
memories are equally long, for DPM-Solver++(2M) on up to three: then a longer schedule tells them apart.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from .coefficients import Coefficients
from .shapes import to_float64

Output = Literal["derivative", "denoised"]

NOTHING = 1e-10  # of a combination's largest weight: below what float32 can add
ROUNDING = 1e-11  # a coefficient this near 0 or 1 is 0 or 1
TELLING_STEPS = 8  # a schedule this long tells what a solver of up to fifth order keeps


@dataclass(frozen=True)
class LinearCombination:
    """carry * state + sum of weight * output[call]."""

    carry: float
    terms: tuple[tuple[int, float], ...]  # (call, weight)


@dataclass(frozen=True)
class SolverStage:
    """One model call: at sigma, of this mix of the step's state and earlier outputs."""

    call: int
    sigma: float
    mix: LinearCombination


@dataclass(frozen=True)
class Step:
    """From the state at sigma to sigma_end; the first stage evaluates the state itself.

    Ancestral steps then scale the state by rescale and add renoise times unit noise, which takes it up to sigma_next.
    `release`: calls whose outputs no later step needs.
    """

    sigma: float
    sigma_end: float
    sigma_next: float
    stages: tuple[SolverStage, ...]
    mix: LinearCombination
    release: tuple[int, ...] = ()
    rescale: float = 1.0
    renoise: float = 0.0


@dataclass(frozen=True)
class History:
    """What a solver takes from earlier steps.

    output: the kind of output that it keeps; None if both kinds take as many outputs of earlier steps.
    reused: whether it takes any.
    """

    output: Output | None
    reused: bool


def history_of(coefficients: Coefficients) -> History:
    """What the coefficients tell of a solver's memory. A schedule of few steps may leave the kind open.

    Raises:
        ValueError: as linear_steps.
    """
    by_derivative, by_denoised = _by_kind(coefficients)
    derivative = _memory(by_derivative, coefficients.starts)
    denoised = derivative + 1 if by_denoised is None else _memory(by_denoised, coefficients.starts)
    if derivative == denoised:
        return History(None, derivative > 0)
    return History("denoised" if denoised < derivative else "derivative", min(derivative, denoised) > 0)


def solver_history(coefficients: Coefficients, read: Callable[[Sequence[float]], Coefficients]) -> History:
    """What the solver itself keeps, whatever the schedule: a longer one answers where the given one is too short.

    Args:
        coefficients: of the solver on the schedule.
        read: the solver's coefficients on another schedule. Its ValueError leaves the answer to the schedule given.
    Raises:
        ValueError: as linear_steps.
    """
    history = history_of(coefficients)
    if history.output is not None or len(coefficients.starts) >= TELLING_STEPS:
        return history
    longer = [coefficients.levels[0] * 0.75**i for i in range(TELLING_STEPS + 1)]
    try:
        return history_of(read(longer))
    except ValueError:  # a sampler for short schedules only
        return history


def linear_steps(coefficients: Coefficients, kept: Output | None = None) -> tuple[Output, tuple[Step, ...]]:
    """The kind of output that the solver's history holds, and its steps.

    Args:
        coefficients: of the solver on a schedule.
        kept: what solver_history found. None: what this schedule tells, and derivatives where it leaves the kind open.
            This is right for one-step methods: the stages of Heun and DPM-Solver-2 then have the weights that they
            have as quadratures.
    Raises:
        ValueError: the sampler moves a state that the model returns as it is, as no solver of dx/dsigma =
            (x - D)/sigma does: there is no step to correct.
    """
    by_derivative, by_denoised = _by_kind(coefficients)
    if (kept or history_of(coefficients).output) == "denoised" and by_denoised is not None:
        return "denoised", _assemble(coefficients, by_denoised)
    return "derivative", _assemble(coefficients, by_derivative)


def _by_kind(coefficients: Coefficients) -> tuple[list[LinearCombination], list[LinearCombination] | None]:
    """All combinations on derivatives and on denoised outputs; None where these cannot be written so."""
    denoised = torch.cat([coefficients.inputs, coefficients.final[None]])
    derivative = _on_derivatives(denoised, coefficients.levels)
    if (derivative[:, 0] - 1.0).abs().max() > 1e-6:
        problem = "does not integrate dx/dsigma = (x - denoised)/sigma"
        raise ValueError(f"{coefficients.name} {problem}; it has no corrected form.")
    starts = coefficients.starts
    by_denoised = _mixes(denoised, starts) if _carries_state(denoised, starts) else None
    return _mixes(derivative, starts), by_denoised


def accumulated_variance(
    steps: Iterable[Step], output: Output, alphas: list[float], ends: list[float], variances: Tensor
) -> Tensor:
    """Variance that the errors of all calls so far have put into y = x / alpha at the end of each step, (steps, C).

    As if they were independent of each other and eps did not answer to the state: the sum of the squared weights of
    each output in the state.

    Args:
        alphas: of each call. At 0 (flow at sigma = 1) the output counts as a velocity, else as eps.
        ends: alpha at each step's end, above 0.
        variances: (calls, C), of the errors of the derivatives.
    """
    calls = len(alphas)
    scales = [alpha if alpha > 0.0 else 1.0 for alpha in alphas]
    of_eps = variances * to_float64(scales).square()[:, None]
    outputs = to_float64(torch.zeros(calls, 1 + calls, device="cpu"))
    state = to_float64(torch.zeros(1 + calls, device="cpu"))
    state[0] = 1.0
    found = []
    for step, alpha in zip(steps, ends, strict=True):
        for stage in step.stages:
            at, scale = _apply(stage.mix, state, outputs), scales[stage.call]
            eps = torch.zeros_like(state)
            eps[1 + stage.call] = 1.0
            answer = (at - stage.sigma * eps) / scale
            outputs[stage.call] = answer if output == "denoised" else (at - answer) / stage.sigma
        state = _apply(step.mix, state, outputs)
        found.append((state[1:] / alpha).square() @ of_eps)
        state = state * step.rescale
    return torch.stack(found)


def _apply(mix: LinearCombination, state: Tensor, outputs: Tensor) -> Tensor:
    return sum((weight * outputs[call] for call, weight in mix.terms), mix.carry * state)


def _on_derivatives(rows: Tensor, levels: tuple[float, ...]) -> Tensor:
    """Rows on [x_0, d_0, d_1, ...] from rows on [x_0, D_0, D_1, ...], by D_j = x_j - sigma_j d_j."""
    answers = torch.zeros_like(rows[:-1])
    found = torch.zeros_like(rows)
    for i, row in enumerate(rows):
        found[i] = row[1 : 1 + i] @ answers[:i]
        found[i, 0] += row[0]
        if i < len(levels):
            answers[i] = found[i]
            answers[i, 1 + i] -= levels[i]
    return found


def _carries_state(rows: Tensor, starts: tuple[int, ...]) -> bool:
    """Whether every step starts from a state that still holds a share of x_0, which `_mixes` divides by."""
    return all(abs(float(rows[_anchor(i, starts), 0])) >= ROUNDING for i in range(1, len(rows)))


def _mixes(rows: Tensor, starts: tuple[int, ...]) -> list[LinearCombination]:
    """Each row (a call's input, or the result) from the state at the start of the step that it belongs to."""
    mixes = [LinearCombination(1.0, ())]
    for i in range(1, len(rows)):
        anchor = rows[_anchor(i, starts)]
        carry = rows[i, 0] / anchor[0]
        weights = rows[i, 1:] - carry * anchor[1:]
        floor = max(NOTHING * float(weights.abs().max()), ROUNDING)
        terms = tuple((call, _snap(w)) for call, w in enumerate(weights.tolist()) if abs(w) > floor)
        mixes.append(LinearCombination(_snap(float(carry)), terms))
    return mixes


def _snap(value: float) -> float:
    return float(round(value)) if abs(value - round(value)) < ROUNDING and abs(value) < 2.0 else value


def _memory(mixes: list[LinearCombination], starts: tuple[int, ...]) -> int:
    """How many outputs of earlier steps the combinations take, all together."""
    return sum(call < _anchor(i, starts) for i, mix in enumerate(mixes[1:], 1) for call, _ in mix.terms)


def _anchor(row: int, starts: tuple[int, ...]) -> int:
    """The call at the start of the step that a call's input, or the result, belongs to."""
    return max(start for start in starts if start < row)


def _assemble(coefficients: Coefficients, mixes: list[LinearCombination]) -> tuple[Step, ...]:
    """mixes[i] for i in starts leads to a state, the others to inner stages; a step's first stage is its state."""
    levels, starts = coefficients.levels, coefficients.starts
    last_use = {call: i for i, mix in enumerate(mixes) for call, _ in mix.terms}
    itself = LinearCombination(1.0, ())
    steps = []
    for start, end in zip(starts, [*starts[1:], len(levels)], strict=True):
        inner = tuple(SolverStage(call, levels[call], mixes[call]) for call in range(start + 1, end))
        level_end = levels[end] if end < len(levels) else coefficients.end
        release = tuple(call for call in range(end) if start < max(last_use.get(call, call + 1), call + 1) <= end)
        stages = (SolverStage(start, levels[start], itself), *inner)
        steps.append(Step(levels[start], level_end, level_end, stages, mixes[end], release))
    return tuple(steps)
