"""How the pack hooks into a sampling run. The only module that knows ComfyUI's wrappers and option dictionaries.

All of a model's denoised stages share one PREDICT_NOISE wrapper, which every guider passes through (custom ones
included, which a post-CFG function would miss) and which applies them in the order of the nodes. Each guidance stage is
a pre-CFG function of its own, so that other packs' keep their places around it. What a run remembers lives in a `SamplingRun`,
made by an OUTER_SAMPLE wrapper, kept in that run's own options and gone with them.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from comfy.samplers import Sampler
from torch import Tensor, nn

from ..model_kind import compiled
from ..protocols import Executor
from .run import SamplingRun, reads_attention
from .stages import GuidanceStage, NetworkStage, RunSchedule, Stage

KEY = "gimbal"
SAMPLER_KEY = "gimbal.sampler"
NETWORK_KEY = "gimbal.network"
NEARLY = 1e-3  # relative: a schedule's ends and the model's own, in different arithmetic


class _StartRun:
    """OUTER_SAMPLE wrapper: gives each run its own memory, and reports at the end."""

    def __init__(self, stages: tuple[Stage, ...]):
        self.stages = stages

    def __call__(
        self,
        executor: Executor,
        noise: Tensor,
        latent: Tensor,
        sampler: Sampler,
        sigmas: Tensor,
        denoise_mask: Tensor | None = None,
        callback: Callable[..., None] | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> Tensor:
        schedule = _schedule(executor.class_obj.model_patcher, noise, sigmas)
        run = SamplingRun(self.stages, schedule, packed=len(kwargs.get("latent_shapes") or ()) > 1)
        # These options were cloned for this run and are dropped after it.
        executor.class_obj.model_options["transformer_options"][KEY] = run

        def counted(*progress: Any) -> None:
            run.begun += 1
            if callback is not None:
                callback(*progress)

        with ExitStack() as unless_it_ends:  # by a Cancel, say, which newer ComfyUI raises past `except Exception`
            unless_it_ends.callback(run.stopped)
            samples = executor(noise, latent, sampler, sigmas, denoise_mask, counted, *args, **kwargs)
            unless_it_ends.pop_all()
        run.end(samples)
        return samples


class _Predict:
    """PREDICT_NOISE wrapper: applies the stages to what the guider predicts."""

    def __init__(self, stages: tuple[Stage, ...]):
        self.stages = stages

    def __call__(
        self, executor: Executor, x: Tensor, timestep: Tensor, model_options: dict, *args: Any, **kwargs: Any
    ):
        run = _run_of(model_options, self.stages)
        run.before(timestep)
        denoised = executor(x, timestep, model_options, *args, **kwargs)
        return run.denoised(denoised, timestep, executor.class_obj.model_patcher)


class _Network:
    """APPLY_MODEL wrapper: the stages' part inside each call of the network, and the attention read for those that go by it."""

    def __call__(self, executor: Executor, x: Tensor, t: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        found = (a for a in (*args, *kwargs.values()) if isinstance(a, dict) and isinstance(a.get(KEY), SamplingRun))
        options = next(found, None)
        if options is None:
            return executor(x, t, *args, **kwargs)
        run: SamplingRun = options[KEY]
        with run.inside(executor.class_obj.diffusion_model):
            if run.packed or run.attention is None:
                return executor(x, t, *args, **kwargs)
            return run.attention.call(executor, x, t, *args, **kwargs)


def stages_of(model: ModelPatcher) -> tuple[Stage, ...]:
    """The stages that a model patcher carries, in the order of their nodes."""
    begin = model.get_wrappers(WrappersMP.OUTER_SAMPLE, KEY)
    return begin[0].stages if begin else ()


def add_stage(model: ModelPatcher, stage: Stage) -> ModelPatcher:
    """A clone of the model patcher with one more stage, which acts after those of its kind that earlier nodes added."""
    stage.window.check(stage.node)
    patched = model.clone()
    stages = (*stages_of(patched), stage)
    wrappers = {WrappersMP.OUTER_SAMPLE: _StartRun(stages), WrappersMP.PREDICT_NOISE: _Predict(stages)}
    if reads_attention(stages) or any(isinstance(each, NetworkStage) for each in stages):
        wrappers[WrappersMP.APPLY_MODEL] = _Network()
    for kind, wrapper in wrappers.items():
        patched.remove_wrappers_with_key(kind, KEY)
        patched.add_wrapper_with_key(kind, KEY, wrapper)
    if isinstance(stage, GuidanceStage):
        patched.set_model_sampler_pre_cfg_function(_pre_cfg(stage))
    return patched


class _ReplaceSampler:
    """OUTER_SAMPLE wrapper: another sampler in the place of the one that was chosen."""

    def __init__(self, exchange: Callable[[Sampler], Sampler]):
        self.exchange = exchange

    def __call__(
        self, executor: Executor, noise: Tensor, latent: Tensor, sampler: Sampler, *args: Any, **kwargs: Any
    ) -> Tensor:
        return executor(noise, latent, self.exchange(sampler), *args, **kwargs)


def replace_sampler(model: ModelPatcher, node: str, exchange: Callable[[Sampler], Sampler]) -> ModelPatcher:
    """A clone of the model patcher whose runs use exchange(sampler) instead of their sampler.

    Raises:
        ValueError: the model's sampler is exchanged already.
    """
    if model.get_wrappers(WrappersMP.OUTER_SAMPLE, SAMPLER_KEY):
        raise ValueError(f"{node}: this model carries a corrected sampler already; remove one of the two nodes.")
    patched = model.clone()
    patched.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, SAMPLER_KEY, _ReplaceSampler(exchange))
    return patched


@dataclass(frozen=True, eq=False)
class NetworkCall:
    """One call of the network on its way.

    Attributes:
        network: that is called. sigma: (chunks * B,), of the batch. branches: for each chunk of the batch the number of
            its conditioning, 0 or 1 with cond and uncond.
        output: makes the call; without changes it may be made more than once.
    """

    network: nn.Module
    sigma: Tensor
    branches: list[int]
    output: Callable[[], Tensor]


class _Around:
    """APPLY_MODEL wrapper: hands a network call on."""

    def __init__(self, around: Callable[[NetworkCall], Tensor]):
        self.around = around

    def __call__(self, executor: Executor, x: Tensor, t: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        given = (
            a["cond_or_uncond"] for a in (*args, *kwargs.values()) if isinstance(a, dict) and "cond_or_uncond" in a
        )
        branches = list(next(given, [0]))
        return self.around(
            NetworkCall(executor.class_obj.diffusion_model, t, branches, lambda: executor(x, t, *args, **kwargs))
        )


def around_network(extra_args: dict[str, Any], around: Callable[[NetworkCall], Tensor]) -> dict[str, Any]:
    """What a sampler is to hand to its model in the place of extra_args, so that each network call becomes around(call).

    The given options stay as they are, so that nothing is left of it after the run.
    """
    options = extra_args.get("model_options") or {}
    transformer = options.get("transformer_options", {})
    wrappers = transformer.get("wrappers", {})
    ours = {**wrappers.get(WrappersMP.APPLY_MODEL, {}), NETWORK_KEY: [_Around(around)]}
    # Copied along the way to the wrappers only: what others keep in the options stays theirs.
    transformer = {**transformer, "wrappers": {**wrappers, WrappersMP.APPLY_MODEL: ours}}
    return {**extra_args, "model_options": {**options, "transformer_options": transformer}}


def _pre_cfg(stage: GuidanceStage) -> Callable[[dict], list[Tensor]]:
    def steer(args: dict) -> list[Tensor]:
        return _run_of(args["model_options"], (stage,)).guidance(stage, args)

    return steer


def _run_of(model_options: dict, stages: tuple[Stage, ...]) -> SamplingRun:
    run = model_options.get("transformer_options", {}).get(KEY)
    # None where a pack has a sampling loop of its own around the guider. Act as well as can be done without memory;
    # these options may outlive the loop, so nothing is kept in them.
    return SamplingRun(stages, RunSchedule(())) if run is None else run


def _schedule(model: ModelPatcher, noise: Tensor, sigmas: Tensor) -> RunSchedule:
    """Of a run that starts with this noise, zeros where another run left its own."""
    sampling = model.get_model_object("model_sampling")
    levels = tuple(sigmas.tolist())
    below = bool(levels) and levels[0] < float(sampling.sigma_max) * (1.0 - NEARLY)
    return RunSchedule(
        levels,
        continues=below and not bool(noise.any()),
        leaves_noise=bool(levels) and levels[-1] > float(sampling.sigma_min) * (1.0 + NEARLY),
        compiled=compiled(model),
    )
