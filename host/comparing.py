"""A patched model's pictures beside those of the plain model at the guidance scale that makes them as strong."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from comfy.model_patcher import ModelPatcher

from ..core.equal_strength import SampledScale, closest, deviation, matching_scale
from .messages import Messages


@dataclass(frozen=True, eq=False)
class Comparison:
    """patched, plain: LATENTs. Strengths are deviations of their samples."""

    patched: dict[str, Any]
    plain: dict[str, Any]
    cfg: float  # of the patched model
    strength: float
    trials: list[SampledScale]  # of the plain model
    tolerance: float

    @property
    def chosen(self) -> SampledScale:
        """The plain model's trial of the nearest strength."""
        return closest(self.trials, self.strength)

    def text(self) -> str:
        """The result in one or two sentences."""
        found, runs = self.chosen, len(self.trials)
        counted = f"{runs} plain run{'' if runs == 1 else 's'}"
        if abs(found.strength / self.strength - 1.0) <= self.tolerance:
            return (
                f"Plain cfg {found.scale:.3g} has the same strength as this model at cfg {self.cfg:.3g} "
                f"(deviation {found.strength:.4g} and {self.strength:.4g}, {counted})."
            )
        side = "weaker" if found.strength < self.strength else "stronger"
        return (
            f"No plain cfg of the same strength was found in {counted}. The nearest, plain cfg {found.scale:.3g}, is "
            f"{side} than this model at cfg {self.cfg:.3g} (deviation {found.strength:.4g} against {self.strength:.4g})."
        )


def ksampler(model: ModelPatcher, cfg: float, *, latent_image: dict[str, Any], **options: Any) -> dict[str, Any]:
    """The LATENT that the KSampler node makes. options: its other inputs."""
    from nodes import common_ksampler  # ComfyUI's module, which tools that only read the nodes need not load

    return common_ksampler(model, cfg=cfg, latent=latent_image, **options)[0]


def compare(
    messages: Messages,
    model: ModelPatcher,
    plain_model: ModelPatcher,
    sample: Callable[[ModelPatcher, float], dict[str, Any]],
    cfg: float,
    trials: int,
    tolerance: float,
) -> Comparison:
    """sample(model, cfg) makes a LATENT, of the same noise and steps each time. messages: takes what is sampled, and the result.

    Raises:
        ValueError: a LATENT has no deviation that could be compared.
    """
    with ExitStack() as unless_it_ends:  # by a Cancel, say: leave no node saying that it samples
        unless_it_ends.callback(messages.add, "stopped before the comparison was complete")
        messages.meanwhile(f"sampling model at cfg {cfg:.3g}")
        patched = sample(model, cfg)
        target = _strength(messages.node, "model", patched)
        made: dict[float, dict[str, Any]] = {}

        def strength(scale: float) -> float:
            run = len(made) + 1
            messages.meanwhile(f"sampling plain_model at cfg {scale:.3g}, run {run} of at most {trials}")
            made[scale] = sample(plain_model, scale)
            return _strength(messages.node, "plain_model", made[scale])

        tried = matching_scale(strength, target, max(cfg, 1.0), tolerance, trials)
        plain = made[closest(tried, target).scale]
        found = Comparison(patched, plain, cfg, target, tried, tolerance)
        unless_it_ends.pop_all()
    messages.info(found.text())
    return found


def _strength(node: str, which: str, latent: dict[str, Any]) -> float:
    samples = latent["samples"]
    if samples.is_nested:
        raise ValueError(
            f"{node}: latent_image packs several latents (video and audio) into one; give a latent of one kind."
        )
    found = deviation(samples)
    if not 0.0 < found < math.inf:
        raise ValueError(
            f"{node}: the latent that {which} made has a deviation of {found:g}; look at it alone first: it holds NaN, "
            "infinity or a single value."
        )
    return found
