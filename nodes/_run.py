"""How the pack hooks into a sampling run. The only module that knows ComfyUI's wrappers and option dictionaries.

A node adds a *stage*: something done to the final prediction of x0 at every model call, after guidance. All stages of
a model share one PREDICT_NOISE wrapper, which every guider passes through (custom ones included, which a post-CFG
function would miss) and which applies them in the order of the nodes. What a run remembers lives in a `Run`, made
when sampling starts, kept in that run's own options and gone with them: a patched model holds configuration only,
so ComfyUI may cache it between prompts and share it between branches.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import Any

import torch
from comfy.patcher_extension import WrappersMP
from torch import Tensor

logger = logging.getLogger(__name__)

KEY = "gimbal"


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

    @property
    def whole(self) -> bool:
        return self.start_percent == 0.0 and self.end_percent == 1.0

    def covers(self, sigma: Tensor, model_sampling: Any) -> bool:
        if self.whole:
            return True  # without asking for sigma's value, which would wait for the device
        start = model_sampling.percent_to_sigma(self.start_percent)
        end = model_sampling.percent_to_sigma(self.end_percent)
        return end <= float(sigma.flatten()[0]) <= start


@dataclass(frozen=True)
class Stage:
    """What one node does to the denoised prediction. Subclasses hold the node's options and say `apply`."""

    node: str  # display name, for messages
    window: Window

    def apply(self, denoised: Tensor) -> Tensor:
        """denoised: (B, C, *spatial). Returns the same shape; must not change its argument."""
        raise NotImplementedError

    def settings(self) -> str:
        """The options in a few words, for the one log line of a run."""
        raise NotImplementedError


@dataclass
class Run:
    """What one sampling run remembers."""

    stages: tuple[Stage, ...]
    packed: bool = False  # several latents (video and audio) flattened into one tensor
    calls: int = 0
    acted: list[int] = field(default_factory=list)
    nonfinite: Tensor | None = None  # (B,) bool, on the device: asked for its value only once, at the end

    def __post_init__(self) -> None:
        self.acted = [0] * len(self.stages)

    def apply(self, denoised: Tensor, sigma: Tensor, model_sampling: Any) -> Tensor:
        self.calls += 1
        if self.packed:
            return denoised
        for i, stage in enumerate(self.stages):
            if stage.window.covers(sigma, model_sampling):
                self.acted[i] += 1
                self._note_nonfinite(denoised)
                denoised = stage.apply(denoised)
        return denoised

    def report(self) -> None:
        for stage, acted in zip(self.stages, self.acted, strict=True):
            if self.packed:
                logger.warning(
                    "%s: did nothing. This latent packs several parts (video and audio) into one; "
                    "it cannot yet tell them apart.",
                    stage.node,
                )
            elif acted:
                logger.info("%s: acted on %d of %d model calls (%s).", stage.node, acted, self.calls, stage.settings())
            elif self.calls:
                logger.warning(
                    "%s: did nothing. None of this run's %d model calls lies between start_percent %g and "
                    "end_percent %g.",
                    stage.node,
                    self.calls,
                    stage.window.start_percent,
                    stage.window.end_percent,
                )
        if self.nonfinite is not None and bool(self.nonfinite.any()):
            warn_nonfinite(self.stages[0].node, "the model's prediction", self.nonfinite)

    def _note_nonfinite(self, denoised: Tensor) -> None:
        if denoised.is_floating_point():
            found = nonfinite_samples(denoised)
            self.nonfinite = found if self.nonfinite is None else self.nonfinite | found


def nonfinite_samples(x: Tensor) -> Tensor:
    """(B,) bool: which samples hold NaN or infinity. One reading pass, no wait for the device."""
    return ~x.flatten(1).sum(1, dtype=torch.float32).isfinite()


def warn_nonfinite(node: str, what: str, found: Tensor) -> None:
    samples = ", ".join(str(i) for i, bad in enumerate(found.tolist()) if bad)
    logger.warning(
        "%s: %s held NaN or infinity in sample %s of the batch. NaN was left where it was and did not reach other "
        "values, infinity was clamped; look for its cause before this node (precision, VAE, a broken file).",
        node,
        what,
        samples,
    )


class _Begin:
    """OUTER_SAMPLE wrapper: gives each run its own memory, and reports at the end."""

    def __init__(self, stages: tuple[Stage, ...]):
        self.stages = stages

    def __call__(self, executor: Any, *args: Any, **kwargs: Any) -> Any:
        run = Run(self.stages, packed=len(kwargs.get("latent_shapes") or ()) > 1)
        # These options were cloned for this run and are dropped after it.
        executor.class_obj.model_options["transformer_options"][KEY] = run
        samples = executor(*args, **kwargs)
        run.report()
        return samples


class _Predict:
    """PREDICT_NOISE wrapper: applies the stages to what the guider predicts."""

    def __init__(self, stages: tuple[Stage, ...]):
        self.stages = stages

    def __call__(self, executor: Any, x: Tensor, timestep: Tensor, model_options: dict, *args: Any, **kwargs: Any):
        denoised = executor(x, timestep, model_options, *args, **kwargs)
        run = model_options["transformer_options"].get(KEY)
        if run is None:  # someone predicts outside a sampling run: nothing to remember
            run = Run(self.stages)
        # Asked for here, not when the node ran: a sampling patch (shift, ...) may come after it in the graph.
        return run.apply(denoised, timestep, executor.class_obj.model_patcher.get_model_object("model_sampling"))


def add_stage(model: Any, stage: Stage) -> Any:
    """A clone of the model patcher with one more stage, applied after those that earlier nodes added."""
    stage.window.check(stage.node)
    patched = model.clone()
    before = patched.get_wrappers(WrappersMP.PREDICT_NOISE, KEY)
    stages = (*before[0].stages, stage) if before else (stage,)
    for kind, wrapper in ((WrappersMP.OUTER_SAMPLE, _Begin(stages)), (WrappersMP.PREDICT_NOISE, _Predict(stages))):
        patched.remove_wrappers_with_key(kind, KEY)
        patched.add_wrapper_with_key(kind, KEY, wrapper)
    return patched
