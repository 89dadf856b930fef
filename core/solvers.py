"""Sampling with Q-Drift's correction by any deterministic linear solver (METHODS.md 4.2): `sample` for one run,
`make_plan` once and then `run` for many."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from .coefficients import ModelSurface
from .gain_formulas import PathName, Rule
from .linear_samplers import SOLVERS, Callback, Sampler, find_solver
from .multistep import LinearCombination, Step
from .plan import Bias, BiasMode, Plan, Variance, make_plan
from .shapes import to_float64

__all__ = ["SOLVERS", "Plan", "Stepper", "make_plan", "run", "sample"]

Denoise = Callable[[Tensor, Tensor], Tensor]  # (x, sigma (B,)) -> denoised x
AfterStep = Callable[[int, Tensor], Tensor]
NoiseSampler = Callable[[Tensor, Tensor], Tensor]  # (sigma, sigma_next) -> standard normal noise like x


def sample(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    solver: str | Sampler,
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
    callback: Callback | None = None,
    after_step: AfterStep | None = None,
    mask: Tensor | None = None,
    noise_sampler: NoiseSampler | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Sample with a corrected solver. With nothing to correct (no variance or strength 0, no bias, no after_step) the
    solver's own function runs, bit for bit.

    Source: Q-Drift Eq. 22-23, 27, 35-39; make_plan says how, and has the arguments up to bias_mode.

    Args:
        denoise: the model, (x (B, C, *spatial), sigma (B,)) -> denoised x of the same shape, as in k-diffusion.
        x: noisy latent at sigmas[0], (B, C, *spatial).
        callback, after_step, mask, noise_sampler, generator: see run.
    Returns:
        The state at sigmas[-1], in x's shape and dtype.
    Raises:
        ValueError: as make_plan and run.
    """
    idle = (variance is None or strength == 0.0) and bias is None and after_step is None
    if idle and solver != "euler_ancestral":
        function = find_solver(solver)
        model = _Model(denoise, model_sampling)
        return function(model, x, sigmas, extra_args={}, callback=callback, disable=True, **(options or {}))
    plan = make_plan(
        solver,
        sigmas,
        path=path,
        variance=variance,
        strength=strength,
        rule=rule,
        cap=cap,
        options=options,
        model_sampling=model_sampling,
        bias=bias,
        bias_mode=bias_mode,
    )
    return run(
        plan,
        denoise,
        x,
        callback=callback,
        after_step=after_step,
        mask=mask,
        noise_sampler=noise_sampler,
        generator=generator,
    )


def run(
    plan: Plan,
    denoise: Denoise,
    x: Tensor,
    *,
    callback: Callback | None = None,
    after_step: AfterStep | None = None,
    mask: Tensor | None = None,
    noise_sampler: NoiseSampler | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Sample by a plan. The correction costs two elementwise passes a step and no wait for the device.

    Source: Q-Drift Eq. 23, 27, 39: x' = x'_0 + c (x'_0 - alpha_ratio x), x'_0 the solver's own next state from the state x
    and the history of this, the corrected, run. States are kept in float32, or in float64 if x is.

    Args:
        denoise: the model, (x in its given dtype, sigma (B,)) -> denoised x.
        x: noisy latent at the plan's first sigma, (B, C, *spatial).
        callback: called at each step, after its first model call, with {"x", "i", "sigma", "sigma_hat", "denoised"}.
        after_step: (i, state after step i) -> the state to go on from. The history stays as it is.
        mask: where to correct, broadcasting against x: 1 fully, 0 not at all, as in inpainting, where the solver
            leaves kept places at the given latent but a longer last step would not. None: everywhere.
        noise_sampler: (sigma, sigma_next), both (), -> noise, for "euler_ancestral"; None draws from generator.
        generator: for that noise and for a stochastic bias correction; None is torch's global one.
    Raises:
        ValueError: statistics of another number of channels than x.
    """
    stepper = Stepper(plan, x, mask=mask, noise_sampler=noise_sampler, generator=generator)
    for i in range(len(plan.steps)):
        stepper.step(denoise, callback)
        if after_step is not None:
            stepper.state = after_step(i, stepper.state)
    return stepper.state.to(x.dtype)


class Stepper:
    """A run taken step by step, for several that go on together. Arguments and errors as in `run`.

    Attributes:
        state: where it is, in float32, or in float64 if x is. May be exchanged between steps; the history stays as it is.
        done: steps taken.
    """

    def __init__(
        self,
        plan: Plan,
        x: Tensor,
        *,
        mask: Tensor | None = None,
        noise_sampler: NoiseSampler | None = None,
        generator: torch.Generator | None = None,
    ):
        work = torch.promote_types(x.dtype, torch.float32)
        self._plan, self._dtype, self._mask, self._generator = plan, x.dtype, mask, generator
        self._numbers = _Numbers(plan, x, work)
        self._noise_sampler = noise_sampler or (lambda *_: _noise_like(x, work, generator))
        self._outputs: dict[int, Tensor] = {}
        self.state, self.done = x.to(work), 0

    def step(self, denoise: Denoise, callback: Callback | None = None) -> None:
        """The next step. IndexError after the last."""
        plan, i, state, outputs = self._plan, self.done, self.state, self._outputs
        step = plan.steps[i]
        for stage in step.stages:
            at = state if stage is step.stages[0] else _combine(stage.mix, state, outputs)
            denoised = denoise(at.to(self._dtype), at.new_full((len(at),), stage.sigma)).to(state.dtype)
            if plan.bias is not None:
                denoised = self._numbers.without_bias(stage.call, stage.sigma, at, denoised, self._generator)
            if callback is not None and stage is step.stages[0]:
                sigma = at.new_full((), stage.sigma)
                callback({"x": at, "i": i, "sigma": sigma, "sigma_hat": sigma, "denoised": denoised})
            outputs[stage.call] = denoised if plan.output == "denoised" else (at - denoised).div_(stage.sigma)
        state = _advance(step, i, state, outputs, self._numbers, self._mask)
        if step.renoise > 0.0:
            noise = self._noise_sampler(state.new_full((), step.sigma), state.new_full((), step.sigma_next))
            state = torch.add(state * step.rescale, noise.to(state.dtype), alpha=step.renoise)
        for call in step.release:
            del outputs[call]
        self.state, self.done = state, i + 1


class _Model(ModelSurface):
    """denoise as a k-diffusion sampler expects its model."""

    def __init__(self, denoise: Denoise, model_sampling: object):
        super().__init__(model_sampling)
        self.denoise = denoise

    def __call__(self, x: Tensor, sigma: Tensor, **_: object) -> Tensor:
        return self.denoise(x, sigma)


class _Numbers:
    """A plan's numbers where and as x needs them: plain floats where channels share them, else tensors, sent ahead."""

    def __init__(self, plan: Plan, x: Tensor, work: torch.dtype):
        self.x, self.work = x, work
        self.acts = plan.gains.any(1).tolist()
        self.lengths = self._rows("variance", 1.0 + plan.gains)
        self.scaled_gains = self._rows("variance", plan.gains * to_float64(plan.alpha_ratios)[:, None])
        bias = plan.bias
        if bias is not None:
            self.slope, self.offset = self._rows("bias", bias.slope), self._rows("bias", bias.offset)
            self.spread = None if bias.spread is None else self._rows("variance", bias.spread)

    def _rows(self, name: str, table: Tensor) -> list[Tensor] | list[float]:
        channels = table.shape[1]
        if channels not in (1, self.x.shape[1]):
            raise ValueError(f"run: {name} has {channels} channels, x {self.x.shape[1]}; use this model's statistics.")
        if channels == 1:
            shared: list[float] = table[:, 0].tolist()
            return shared
        shape = (len(table), 1, channels, *[1] * (self.x.ndim - 2))
        return list(table.to(self.work).to(self.x.device, non_blocking=True).reshape(shape))

    def without_bias(
        self, call: int, sigma: float, x: Tensor, denoised: Tensor, generator: torch.Generator | None
    ) -> Tensor:
        """Eq. 46-48 on the derivative (x - denoised)/sigma, put back into denoised."""
        error = (x - denoised) * self.slope[call] + sigma * self.offset[call]
        if self.spread is not None:
            error = error + sigma * self.spread[call] * _noise_like(x, self.work, generator)
        return denoised + error


def _combine(mix: LinearCombination, state: Tensor, outputs: Mapping[int, Tensor]) -> Tensor:
    terms = list(mix.terms)
    if mix.carry == 1.0 and terms:
        call, weight = terms.pop(0)
        total = torch.add(state, outputs[call], alpha=weight)
    elif mix.carry == 0.0 and terms:
        call, weight = terms.pop(0)
        total = outputs[call] * weight
    else:
        total = state * mix.carry
    for call, weight in terms:
        total.add_(outputs[call], alpha=weight)
    return total


def _advance(
    step: Step, i: int, state: Tensor, outputs: Mapping[int, Tensor], numbers: _Numbers, mask: Tensor | None
) -> Tensor:
    plain = _combine(step.mix, state, outputs)
    length, scaled_gains = numbers.lengths[i], numbers.scaled_gains[i]
    if not numbers.acts[i]:
        return plain
    corrected = plain * length
    if isinstance(scaled_gains, float):
        corrected.sub_(state, alpha=scaled_gains)
    else:
        corrected.addcmul_(state, scaled_gains, value=-1.0)
    return corrected if mask is None else torch.lerp(plain, corrected, mask.to(corrected).expand_as(plain))


def _noise_like(x: Tensor, dtype: torch.dtype, generator: torch.Generator | None) -> Tensor:
    device = x.device if generator is None else generator.device
    return torch.randn(x.shape, generator=generator, device=device, dtype=dtype).to(x.device)
