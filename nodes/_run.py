"""How the pack hooks into a sampling run. The only module that knows ComfyUI's wrappers and option dictionaries.

A node adds a *stage*. A `DenoisedStage` changes the final prediction of x0 at every model call, after guidance: all of
a model's share one PREDICT_NOISE wrapper, which every guider passes through (custom ones included, which a post-CFG
function would miss) and which applies them in the order of the nodes. A `GuidanceStage` changes the conditional
prediction before CFG: each is a pre-CFG function of its own, so that other packs' keep their places around it.

What a run remembers lives in a `Run`, made when sampling starts, kept in that run's own options and gone with them.
A patched model holds configuration only, so ComfyUI may cache it between prompts and share it between branches. The
one thing a run leaves behind is what its stages saw, for the preview nodes to show (see _observe); no run reads it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ..core.schedule import step_index
from ._attention import AttentionReader
from ._observe import Observer, Watch

logger = logging.getLogger(__name__)

KEY = "gimbal"
SAMPLER_KEY = "gimbal.sampler"


@dataclass(frozen=True)
class Window:
    """The part of the schedule a stage acts in, as fractions of the whole noise schedule: 0 is pure noise, 1 the end."""

    start_percent: float = 0.0
    end_percent: float = 1.0

    def check(self, node: str) -> None:
        if not 0.0 <= self.start_percent <= self.end_percent <= 1.0:
            raise ValueError(
                f"{node}: start_percent ({self.start_percent}) must not be above end_percent ({self.end_percent}), "
                "both between 0 and 1; lower start_percent or raise end_percent."
            )

    def covers(self, sigma: Tensor, model_sampling: Any) -> bool:
        if self.start_percent == 0.0 and self.end_percent == 1.0:
            return True  # without asking for sigma's value, which would wait for the device
        start = model_sampling.percent_to_sigma(self.start_percent)
        end = model_sampling.percent_to_sigma(self.end_percent)
        return end <= float(sigma.flatten()[0]) <= start


@dataclass(frozen=True, eq=False)
class Stage:
    """What one node does, with its options. Nothing in it changes."""

    node: str  # display name, for messages
    window: Window
    observer: Observer = field(default_factory=Observer, kw_only=True)

    def settings(self) -> str:
        """The options in a few words, for the one log line of a run."""
        raise NotImplementedError


@dataclass(frozen=True)
class Call:
    """What a stage may want to know of one model call."""

    step: int | None  # None if the stage has no state
    attention: (
        Tensor | None
    )  # the network's confidence on its token grid, (B, h, w) or (B, F, h, w), where asked for and read
    look: Callable[..., None]  # show maps (B, *spatial) by name to the preview nodes


@dataclass(frozen=True, eq=False)
class DenoisedStage(Stage):
    reads_attention = False

    def new_state(self) -> Any:
        """What a run has to remember between steps, made anew for each run. None: nothing."""
        return None

    def objection(self, denoised: Tensor) -> str:
        """Why this stage cannot act on such a latent; empty if it can."""
        return ""

    def apply(self, denoised: Tensor, state: Any, call: Call) -> Tensor:
        """denoised (B, C, *spatial) to the same shape, without changing it."""
        raise NotImplementedError


@dataclass(frozen=True, eq=False)
class GuidanceStage(Stage):
    def objection(self, cond: Tensor, cfg: float) -> str:
        """Why this stage cannot act on such a prediction; empty if it can."""
        return ""

    def apply(self, cond: Tensor, uncond: Tensor, cfg: float, look: Callable[..., None]) -> Tensor:
        """The conditional prediction that plain CFG is to see instead of cond."""
        raise NotImplementedError


class Record:
    """What a run knows of one stage."""

    def __init__(self, state: Any):
        self.state = state
        self.seen = self.acted = 0  # model calls
        self.blind = 0  # model calls whose attention it wanted and did not get
        self.refusal = ""  # why it could not act
        self.watch_maps = Watch()
        self.nonfinite: Tensor | None = None  # (B,) bool, on the device: asked for its value once, at the end

    def watch(self, x: Tensor) -> None:
        found = nonfinite_samples(x)
        self.nonfinite = found if self.nonfinite is None else self.nonfinite | found


class Run:
    """What one sampling run remembers."""

    def __init__(self, stages: tuple[Stage, ...], sigmas: list[float], packed: bool = False):
        self.records = {
            stage: Record(stage.new_state() if isinstance(stage, DenoisedStage) else None) for stage in stages
        }
        self.sigmas = sigmas
        self.attention = AttentionReader() if reads_attention(stages) else None
        self.packed = packed  # several latents (video and audio) flattened into one tensor

    def denoised(self, denoised: Tensor, sigma: Tensor, patcher: Any) -> Tensor:
        watched = False
        attention = None if self.attention is None else self.attention.take(denoised.shape)
        for stage, record in self.records.items():
            if not isinstance(stage, DenoisedStage) or not self._may_act(stage, record, sigma, patcher):
                continue
            record.refusal = stage.objection(denoised)
            if record.refusal:
                continue
            if not watched:  # the stages behind it see what it makes of the same prediction
                record.watch(denoised)
                watched = True
            record.acted += 1
            record.blind += stage.reads_attention and attention is None
            call = Call(self._step(record, sigma), attention, partial(record.watch_maps.add, sigma))
            denoised = stage.apply(denoised, record.state, call)
        return denoised

    def guidance(self, stage: GuidanceStage, args: dict) -> list[Tensor]:
        predictions, record, cfg = list(args["conds_out"]), self.records[stage], args["cond_scale"]
        if not self._may_act(stage, record, args["sigma"], args["model"].current_patcher):
            return predictions
        if len(predictions) != 2:
            record.refusal = f"This guider combines {len(predictions)} predictions; it knows what to do with two."
        elif args["conds"][1] is None or cfg == 0.0:  # ComfyUI leaves the second out at cfg 1, or without a negative
            record.refusal = (
                f"At cfg {cfg:g}, or without a negative, there is no guidance to change; raise cfg above 1."
            )
        else:
            record.refusal = stage.objection(predictions[0], cfg)
        if not record.refusal:
            record.watch(predictions[0])
            record.acted += 1
            predictions[0] = stage.apply(*predictions, cfg, partial(record.watch_maps.add, args["sigma"]))
        return predictions

    def end(self, samples: Tensor) -> None:
        """Say what was done, and leave what was seen to the preview nodes."""
        self._report()
        for stage, record in self.records.items():
            if record.watch_maps:
                stage.observer.keep(record.watch_maps.seen(samples, self.sigmas))

    def _report(self) -> None:
        for stage, record in self.records.items():
            if record.refusal and not record.acted:
                logger.warning("%s: did nothing. %s", stage.node, record.refusal)
            elif record.acted:
                logger.info(
                    "%s: acted on %d of %d model calls (%s).", stage.node, record.acted, record.seen, stage.settings()
                )
                if record.blind:
                    logger.warning(
                        "%s: took the gradient for the attention on %d of %d model calls. %s.",
                        stage.node,
                        record.blind,
                        record.acted,
                        self.attention.refusal,
                    )
            elif record.seen:
                logger.warning(
                    "%s: did nothing. None of this run's %d model calls lies between start_percent %g and "
                    "end_percent %g.",
                    stage.node,
                    record.seen,
                    stage.window.start_percent,
                    stage.window.end_percent,
                )
            else:
                logger.warning("%s: did nothing. This sampler or guider never called it.", stage.node)
        self._report_nonfinite()

    def _may_act(self, stage: Stage, record: Record, sigma: Tensor, patcher: Any) -> bool:
        record.seen += 1
        if self.packed:
            record.refusal = (
                "This latent packs several parts (video and audio) into one; it cannot yet tell them apart."
            )
            return False
        # Asked for here, not when the node ran: a sampling patch (shift, ...) may come after it in the graph.
        return stage.window.covers(sigma, patcher.get_model_object("model_sampling"))

    def _step(self, record: Record, sigma: Tensor) -> int | None:
        if record.state is None or not self.sigmas:
            return None
        return step_index(float(sigma.flatten()[0]), self.sigmas)

    def _report_nonfinite(self) -> None:
        for stage, record in self.records.items():
            if record.nonfinite is not None and bool(record.nonfinite.any()):
                warn_nonfinite(stage.node, "the model's prediction", record.nonfinite)
                return  # said once, for the first node that met it


def nonfinite_samples(x: Tensor) -> Tensor:
    """(B,) bool: which samples hold NaN or infinity. One reading pass, no wait for the device."""
    return ~x.flatten(1).sum(1, dtype=torch.float32).isfinite()


def warn_nonfinite(node: str, what: str, found: Tensor) -> None:
    samples = ", ".join(str(i) for i, bad in enumerate(found.tolist()) if bad)
    logger.warning(
        "%s: %s held NaN or infinity in sample %s of the batch; other samples are not touched by it. "
        "Look for its cause before this node (precision, VAE, a broken file).",
        node,
        what,
        samples,
    )


class _Begin:
    """OUTER_SAMPLE wrapper: gives each run its own memory, and reports at the end."""

    def __init__(self, stages: tuple[Stage, ...]):
        self.stages = stages

    def __call__(self, executor: Any, *args: Any, **kwargs: Any) -> Tensor:
        sigmas = kwargs["sigmas"] if "sigmas" in kwargs else args[3]
        run = Run(self.stages, sigmas.tolist(), packed=len(kwargs.get("latent_shapes") or ()) > 1)
        # These options were cloned for this run and are dropped after it.
        executor.class_obj.model_options["transformer_options"][KEY] = run
        samples = executor(*args, **kwargs)
        run.end(samples)
        return samples


class _Predict:
    """PREDICT_NOISE wrapper: applies the stages to what the guider predicts."""

    def __init__(self, stages: tuple[Stage, ...]):
        self.stages = stages

    def __call__(self, executor: Any, x: Tensor, timestep: Tensor, model_options: dict, *args: Any, **kwargs: Any):
        denoised = executor(x, timestep, model_options, *args, **kwargs)
        return _run_of(model_options, self.stages).denoised(denoised, timestep, executor.class_obj.model_patcher)


class _Network:
    """APPLY_MODEL wrapper: reads the attention of each network call for the stages that go by it."""

    def __call__(self, executor: Any, x: Tensor, t: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        found = (a for a in (*args, *kwargs.values()) if isinstance(a, dict) and isinstance(a.get(KEY), Run))
        options = next(found, None)
        if options is None or options[KEY].packed:
            return executor(x, t, *args, **kwargs)
        return options[KEY].attention.call(executor, x, t, *args, **kwargs)


def reads_attention(stages: tuple[Stage, ...]) -> bool:
    return any(isinstance(stage, DenoisedStage) and stage.reads_attention for stage in stages)


def stages_of(model: Any) -> tuple[Stage, ...]:
    """The stages that a model patcher carries, in the order of their nodes."""
    begin = model.get_wrappers(WrappersMP.OUTER_SAMPLE, KEY)
    return begin[0].stages if begin else ()


def add_stage(model: Any, stage: Stage) -> Any:
    """A clone of the model patcher with one more stage, which acts after those of its kind that earlier nodes added."""
    stage.window.check(stage.node)
    patched = model.clone()
    stages = (*stages_of(patched), stage)
    wrappers = {WrappersMP.OUTER_SAMPLE: _Begin(stages), WrappersMP.PREDICT_NOISE: _Predict(stages)}
    if reads_attention(stages):
        wrappers[WrappersMP.APPLY_MODEL] = _Network()
    for kind, wrapper in wrappers.items():
        patched.remove_wrappers_with_key(kind, KEY)
        patched.add_wrapper_with_key(kind, KEY, wrapper)
    if isinstance(stage, GuidanceStage):
        patched.set_model_sampler_pre_cfg_function(_pre_cfg(stage))
    return patched


class _Exchange:
    """OUTER_SAMPLE wrapper: another sampler in the place of the one that was chosen."""

    def __init__(self, exchange: Callable[[Any], Any]):
        self.exchange = exchange

    def __call__(
        self, executor: Any, noise: Tensor, latent: Tensor, sampler: Any, *args: Any, **kwargs: Any
    ) -> Tensor:
        return executor(noise, latent, self.exchange(sampler), *args, **kwargs)


def exchange_sampler(model: Any, node: str, exchange: Callable[[Any], Any]) -> Any:
    """A clone of the model patcher whose runs use exchange(sampler) instead of their sampler.

    Raises:
        ValueError: the model's sampler is exchanged already.
    """
    if model.get_wrappers(WrappersMP.OUTER_SAMPLE, SAMPLER_KEY):
        raise ValueError(f"{node}: this model carries a corrected sampler already; remove one of the two nodes.")
    patched = model.clone()
    patched.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, SAMPLER_KEY, _Exchange(exchange))
    return patched


def _pre_cfg(stage: GuidanceStage) -> Any:
    def steer(args: dict) -> list[Tensor]:
        return _run_of(args["model_options"], (stage,)).guidance(stage, args)

    return steer


def _run_of(model_options: dict, stages: tuple[Stage, ...]) -> Run:
    run = model_options.get("transformer_options", {}).get(KEY)
    # None where a pack has a sampling loop of its own around the guider. Act as well as can be done without memory;
    # these options may outlive the loop, so nothing is kept in them.
    return Run(stages, []) if run is None else run
