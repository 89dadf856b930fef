"""The linear coefficients of a sampler function, read off by running it (METHODS.md 4.2).

A deterministic sampler combines its first state x_0 and the denoised outputs D_0, D_1, ... linearly, with numbers that
depend on the schedule alone. Run in float64 with x_0 and every D_j a basis vector of its own, it spells out those
numbers in the inputs that it gives the model. A run on dense random vectors must agree with them; if it does not, the
sampler is not of this kind.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from .linear_samplers import Sampler, StepInfo
from .shapes import to_float64

PROBE_SIZE = 8  # elements of the dense vectors
PROBE_SCALE = 3.0  # their spread: beyond what a sampler that clamps would let through
AGREEMENT = 1e-6  # relative: float64 gives 1e-12, and coefficients worked out in float32 still pass
SAME_LEVEL = 1e-3  # relative: some samplers move the first sigma a little
MOST_CALLS = 16  # per step: none makes more, but an adaptive one that never gets anywhere
# What a sampler runs into when it asks the stand-in for what only a real model has, or cannot work in float64.
TROUBLE = (ArithmeticError, AttributeError, LookupError, NameError, RuntimeError, TypeError, ValueError)


@dataclass(frozen=True, eq=False)
class Coefficients:
    """Every state of a sampler as a linear combination of [x_0, D_0, D_1, ...], float64 on the CPU.

    name: of the sampler, for messages.
    levels: sigma of each model call.
    inputs: (calls, 1 + calls), row i the input of call i, which has nothing of D_i and later ones.
    final: (1 + calls,), the result.
    starts: for each step of the schedule, the call that evaluates the state at its start.
    end: the schedule's last sigma.
    """

    name: str
    levels: tuple[float, ...]
    inputs: Tensor
    final: Tensor
    starts: tuple[int, ...]
    end: float


def read_coefficients(
    sampler: Sampler,
    sigmas: Tensor | Sequence[float],
    *,
    model_sampling: object = None,
    options: Mapping[str, Any] | None = None,
) -> Coefficients:
    """Coefficients of a sampler function on a schedule, exact to float64.

    Runs the function twice on the CPU, on vectors with about as many elements as it makes model calls. Torch's random
    state is left as it was.

    Args:
        sampler: k-diffusion's signature, fn(model, x, sigmas, extra_args, callback, disable, **options).
        sigmas: (steps + 1,), at least one step, finite, >= 0, not rising.
        model_sampling: ComfyUI's object, for samplers that look at model.inner_model.inner_model.model_sampling.
        options: the sampler's own keyword arguments.
    Raises:
        ValueError: the sampler adds noise, is not linear, chooses its calls by what the model returns, does not begin
            its steps at the schedule's sigmas or cannot run on a stand-in for a model; the schedule is none.
    """
    schedule = check_schedule(sigmas)
    name = getattr(sampler, "__name__", type(sampler).__name__).removeprefix("sample_")

    def run(answer: Callable[[int], Tensor], most_calls: int) -> _Probe:
        probe = _Probe(answer, most_calls, model_sampling)
        probe.run(name, sampler, schedule, dict(options or {}))
        return probe

    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        most_calls = MOST_CALLS * len(schedule)
        noise = to_float64(torch.randn(1 + most_calls, PROBE_SIZE, generator=generator, device="cpu")) * PROBE_SCALE
        dense = run(lambda call: noise[1 + call], most_calls)
        unit_vectors = to_float64(torch.eye(1 + len(dense.levels), device="cpu"))
        basis = run(lambda call: unit_vectors[1 + call], len(dense.levels))
    _check_agreement(name, dense, basis)
    return Coefficients(
        name,
        tuple(dense.levels),
        torch.stack(basis.inputs),
        basis.result,
        _step_starts(name, dense, schedule),
        schedule[-1],
    )


def check_schedule(sigmas: Tensor | Sequence[float]) -> tuple[float, ...]:
    """The schedule as numbers.

    Raises:
        ValueError: it has no step, rises, or holds a value that is negative or not finite.
    """
    schedule = tuple(to_float64(sigmas).flatten().tolist())
    falls = all(later <= earlier for earlier, later in pairwise(schedule))
    if len(schedule) < 2 or not falls or not (schedule[-1] >= 0.0 and 0.0 < schedule[0] < math.inf):
        raise ValueError(
            f"sigmas {list(schedule)} are no schedule; give two or more finite values, 0 or above, that fall."
        )
    return schedule


class ModelSurface:
    """What samplers look for on ComfyUI's model beside calling it: the sampling object, in both its places.

    Without one, the patcher hands out None: samplers that ask it for what they can do without (a `noise_scale`, from ComfyUI
    0.33.0) then take their default.
    """

    def __init__(self, model_sampling: object):
        inner = SimpleNamespace() if model_sampling is None else SimpleNamespace(model_sampling=model_sampling)
        patcher = SimpleNamespace(get_model_object=lambda name: getattr(inner, name, None))
        self.inner_model = SimpleNamespace(inner_model=inner, model_patcher=patcher, cfg=1.0)


class _EndlessCalls(RuntimeError):
    pass


class _Probe(ModelSurface):
    """A model that answers what is prepared, and notes what it was asked."""

    def __init__(self, answer: Callable[[int], Tensor], most_calls: int, model_sampling: object):
        super().__init__(model_sampling)
        self.answer, self.most_calls = answer, most_calls
        self.levels: list[float] = []
        self.inputs: list[Tensor] = []
        self.answers: list[Tensor] = [answer(-1)]  # x_0, then D_0, D_1, ...
        self.begun: list[tuple[int, int]] = []  # (step, call) of each callback

    def __call__(self, x: Tensor, sigma: Tensor | float, *_: object, **__: object) -> Tensor:
        if len(self.levels) == self.most_calls:
            raise _EndlessCalls
        self.answers.append(self.answer(len(self.levels)))
        self.levels.append(float(torch.as_tensor(sigma).flatten()[0]))
        self.inputs.append(to_float64(x).flatten().clone())
        return self.answers[-1].reshape(x.shape).clone()

    def note(self, info: StepInfo) -> None:
        self.begun.append((int(info["i"]), len(self.levels) - 1))

    def run(self, name: str, sampler: Sampler, schedule: tuple[float, ...], options: dict[str, Any]) -> None:
        before = torch.random.get_rng_state()
        x = self.answers[0].reshape(1, -1, 1, 1).clone()
        extra_args: dict[str, object] = {"model_options": {}}
        try:
            result = sampler(
                self, x, to_float64(schedule), extra_args=extra_args, callback=self.note, disable=True, **options
            )
        except _EndlessCalls as error:
            raise ValueError(
                f"{name} chooses its model calls by what the model returns; it has no fixed coefficients."
            ) from error
        except TROUBLE as error:
            raise ValueError(f"{name} cannot be read outside a real run; it has no corrected form.") from error
        self.result = to_float64(result).flatten()
        self.drew_noise = not torch.equal(before, torch.random.get_rng_state())


def _check_agreement(name: str, dense: _Probe, basis: _Probe) -> None:
    if basis.levels != dense.levels:
        raise ValueError(f"{name} chooses its model calls by what the model returns; it has no fixed coefficients.")
    found = torch.stack([*dense.inputs, dense.result])
    rows = torch.stack([*basis.inputs, basis.result])
    if not (found.isfinite().all() and rows.isfinite().all()):
        raise ValueError(f"{name} gives values that are not finite on this schedule, whatever the model.")
    if (rows @ torch.stack(dense.answers) - found).abs().max() > AGREEMENT * found.abs().max():
        why = "adds random noise" if dense.drew_noise else "does not combine the model's outputs linearly"
        raise ValueError(f"{name} {why}; only deterministic linear samplers have fixed coefficients.")
    if not dense.levels or min(dense.levels) <= 0.0:
        raise ValueError(f"{name} calls the model at sigmas {dense.levels}; a corrected form needs them above 0.")


def _step_starts(name: str, probe: _Probe, schedule: tuple[float, ...]) -> tuple[int, ...]:
    """By the sampler's own callback; without one, the last call at each sigma, since inner calls come before."""

    def close(a: float, b: float) -> bool:
        return math.isclose(a, b, rel_tol=SAME_LEVEL)

    last = [max((i for i, a in enumerate(probe.levels) if close(a, b)), default=-1) for b in schedule[:-1]]
    told = [call for i, (step, call) in enumerate(probe.begun) if step == i]
    for starts in (told, last):
        rises = starts[:1] == [0] and all(a < b for a, b in pairwise(starts))
        if len(starts) == len(last) and rises and all(map(close, (probe.levels[i] for i in starts), schedule)):
            return tuple(starts)
    raise ValueError(f"{name} does not begin its steps at the schedule's sigmas; it cannot be corrected step by step.")
