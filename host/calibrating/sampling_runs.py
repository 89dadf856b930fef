"""Sampling runs whose model calls are written down, and runs that make the same calls on another model.

Both go through ComfyUI's own sampling with an ordinary KSAMPLER, so that loading, conditioning, guidance, previews and
Cancel work as they always do. The recording one looks at what its sampler asks of the model, from the outside.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import comfy.model_management
import comfy.sample
import comfy.samplers
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ...calibration.trajectories import ModelCall, Trajectory
from ..protocols import SampledModel
from ..sampling.hooks import NetworkCall, around_network
from .layer_means import PlaceWatch

Conditioning = list


@dataclass(frozen=True, eq=False)
class Schedule:
    """What all runs have in common, but for their noise and their prompts."""

    latent: Tensor  # (B, C, *spatial), as the LATENT input holds it
    batch_index: tuple[int, ...] | None
    cfg: float
    sampler: str
    scheduler: str
    sigmas: Tensor  # (steps + 1,) on the CPU

    @property
    def steps(self) -> int:
        return len(self.sigmas) - 1


@dataclass(frozen=True, eq=False)
class CalibrationRun:
    """One trajectory."""

    seed: int
    positive: Conditioning
    negative: Conditioning
    prompt: str  # digest of both


def record(
    node: str,
    model: ModelPatcher,
    schedule: Schedule,
    run: CalibrationRun,
    on_step: Callable[[int], None],
    watch: PlaceWatch | None = None,
) -> Trajectory:
    """A full-precision run. ValueError if the model predicts NaN; Cancel as ComfyUI raises it.

    watch: gathers the means at the network's places.
    """
    calls: list[ModelCall] = []
    final: list[Tensor] = []
    stock = comfy.samplers.sampler_object(schedule.sampler)

    def keep(x: Tensor, sigma: Tensor, denoised: Tensor) -> None:
        if not bool(denoised.isfinite().all()):
            raise ValueError(
                f"{node}: the full-precision model predicts NaN or infinity at sigma {float(sigma.flatten()[0]):.4g}, "
                f"seed {run.seed}; run it in a wider dtype (bf16 or fp32), or look at the conditioning."
            )
        calls.append(ModelCall(x, sigma.detach().to("cpu", copy=True), denoised))

    def sampler(model: SampledModel, x: Tensor, sigmas: Tensor, **options: Any) -> Tensor:
        if watch is not None:
            watch.start()
            options["extra_args"] = around_network(options.get("extra_args") or {}, watch)
        end = stock.sampler_function(_Listening(model, keep), x, sigmas, **options)
        final.append(end.detach().to("cpu", copy=True))
        return end

    recording = comfy.samplers.KSAMPLER(sampler, dict(stock.extra_options), dict(stock.inpaint_options))
    sample(model, schedule, run, recording, lambda step, *_: on_step(min(step + 1, schedule.steps)))
    return Trajectory(calls, final[0], None if watch is None else watch.taken())


def final_state(
    model: ModelPatcher,
    schedule: Schedule,
    run: CalibrationRun,
    sampler: comfy.samplers.KSAMPLER,
    on_step: Callable[[int], None],
) -> Tensor:
    """Where a run with another sampler ends, on the CPU, in the sampler's units as a trajectory's `final`."""
    final: list[Tensor] = []

    def whole(*args: Any, **options: Any) -> Tensor:
        end = sampler.sampler_function(*args, **options)
        final.append(end.detach().to("cpu", copy=True))
        return end

    keeping = comfy.samplers.KSAMPLER(whole, dict(sampler.extra_options), dict(sampler.inpaint_options))
    sample(model, schedule, run, keeping, lambda step, *_: on_step(min(step + 1, schedule.steps)))
    return final[0]


def replay(
    node: str,
    model: ModelPatcher,
    schedule: Schedule,
    run: CalibrationRun,
    calls: Iterable[ModelCall],
    on_call: Callable[[ModelCall, Tensor], None],
    inside: Callable[[NetworkCall], Tensor] | None = None,
) -> None:
    """Ask the quantized model at exactly the recorded states; on_call gets its prediction, on the CPU.

    inside: acts in each call of the network.
    """

    def sampler(model: SampledModel, x: Tensor, sigmas: Tensor, extra_args: dict | None = None, **_: Any) -> Tensor:
        extra_args = extra_args or {}
        if inside is not None:
            extra_args = around_network(extra_args, inside)
        for call in calls:
            comfy.model_management.throw_exception_if_processing_interrupted()
            denoised = model(call.x.to(x.device), call.sigma.to(x.device), **extra_args).detach().cpu()
            if not bool(denoised.isfinite().all()):
                raise ValueError(
                    f"{node}: the quantized model predicts NaN or infinity at sigma {float(call.sigma[0]):.4g}, "
                    f"seed {run.seed}; the file may be broken or of a format that this ComfyUI cannot read."
                )
            on_call(call, denoised)
        return x

    sample(model, schedule, run, comfy.samplers.KSAMPLER(sampler), None)


class _Listening:
    """The model as a sampler sees it, with an ear at each call."""

    def __init__(self, model: SampledModel, keep: Callable[[Tensor, Tensor, Tensor], None]):
        self._model = model
        self._keep = keep

    def __call__(self, x: Tensor, sigma: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        comfy.model_management.throw_exception_if_processing_interrupted()
        before = x.detach().to("cpu", copy=True)  # samplers may go on to change theirs
        denoised = self._model(x, sigma, *args, **kwargs)
        self._keep(before, sigma, denoised.detach().to("cpu", copy=True))
        return denoised

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)


def sample(
    model: ModelPatcher,
    schedule: Schedule,
    run: CalibrationRun,
    sampler: comfy.samplers.Sampler,
    callback: Callable[..., None] | None,
) -> None:
    """A run through ComfyUI's own sampling, whose result the sampler keeps."""
    latent = comfy.sample.fix_empty_latent_channels(model, schedule.latent)
    index = None if schedule.batch_index is None else list(schedule.batch_index)
    comfy.sample.sample_custom(
        model,
        comfy.sample.prepare_noise(latent, run.seed, index),
        schedule.cfg,
        sampler,
        schedule.sigmas,
        run.positive,
        run.negative,
        latent,
        callback=callback,
        disable_pbar=True,
        seed=run.seed,
    )


def sigmas_for(model: ModelPatcher, sampler: str, scheduler: str, steps: int) -> Tensor:
    """As the KSampler node makes them."""
    chosen = comfy.samplers.KSampler(
        model, steps=steps, device=torch.device("cpu"), sampler=sampler, scheduler=scheduler, denoise=1.0
    )
    return chosen.sigmas.cpu().float()
