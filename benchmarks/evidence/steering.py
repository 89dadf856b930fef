"""Candidates that change the guidance or limit the prediction, as stages of a real sampling run.

`cond` and `uncond` are denoised predictions (B, C, h, w), g = cond - uncond. A guided prediction is read as
cond + (cfg - 1) g: a candidate changes the second term, the extra guidance, and leaves the conditional prediction alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from gimbal.core.aqclip import aqclip
from gimbal.core.micrograin import micrograin
from gimbal.core.samg import guidance_energy, scale_map
from gimbal.host.sampling.stages import CallContext, DenoisedStage, GuidanceContext, GuidanceStage, Stage, Window

from .qsilk import STRIDE, STRONG, TILE

SPACE = (2, 3)
EVERYTHING = (1, 2, 3)
LOW_SHARE, HIGH_SHARE = 2 / 3, 1.6  # SAMG's range of weights
Extra = Callable[[Tensor, Tensor], Tensor]  # (g, cond) -> what is added instead of g, (cfg - 1) times
Limit = Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Extras(GuidanceStage):
    extra: Extra

    def settings(self) -> str:
        return "candidate"

    def apply(self, cond: Tensor, uncond: Tensor, call: GuidanceContext) -> Tensor:
        guidance = cond - uncond
        return uncond + (guidance + (call.cfg - 1.0) * self.extra(guidance, cond)) / call.cfg


@dataclass(frozen=True, eq=False)
class Guided(GuidanceStage):
    """Changes the guided prediction, knowing the conditional one."""

    change: Callable[[Tensor, Tensor], Tensor]  # (guided, cond) -> guided

    def settings(self) -> str:
        return "candidate"

    def apply(self, cond: Tensor, uncond: Tensor, call: GuidanceContext) -> Tensor:
        guided = torch.lerp(uncond, cond, call.cfg)
        return uncond + (self.change(guided, cond) - uncond) / call.cfg


@dataclass(frozen=True, eq=False)
class Limited(DenoisedStage):
    limit: Limit

    def settings(self) -> str:
        return "candidate"

    def apply(self, denoised: Tensor, state: None, call: CallContext) -> Tensor:
        return self.limit(denoised)


def _with_stage(model: Any, stage: Stage) -> Any:
    from gimbal.host.sampling.hooks import add_stage  # ComfyUI is on the path once the model is loaded

    return add_stage(model, stage)


def extra(function: Extra, start: float = 0.0, end: float = 1.0) -> Callable[[Any], Any]:
    return lambda model: _with_stage(model, Extras("candidate", Window(start, end), extra=function))


def guided(function: Callable[[Tensor, Tensor], Tensor], start: float = 0.0, end: float = 1.0) -> Callable[[Any], Any]:
    return lambda model: _with_stage(model, Guided("candidate", Window(start, end), change=function))


def limited(function: Limit, start: float = 0.0, end: float = 1.0) -> Callable[[Any], Any]:
    return lambda model: _with_stage(model, Limited("candidate", Window(start, end), limit=function))


def chain(*patches: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def patched(model: Any) -> Any:
        for patch in patches:
            model = patch(model)
        return model

    return patched


def interval(start: float, end: float) -> Callable[[Any], Any]:
    """cfg between these parts of the schedule, the conditional prediction alone outside (limited-interval guidance)."""
    outside = [(0.0, start), (end, 1.0)]
    return chain(*(extra(nothing, *part) for part in outside if part[0] < part[1]))


def nothing(g: Tensor, cond: Tensor) -> Tensor:
    return torch.zeros_like(g)


def weighted(g: Tensor, cond: Tensor, weights: Callable[[Tensor], Tensor]) -> Tensor:
    """Weights (B, 1, h, w) of a mean of 1 in each sample: they change where, not how much."""
    found = weights(g)
    return found / found.mean(EVERYTHING, keepdim=True) * g


def samg_weights(g: Tensor) -> Tensor:
    return scale_map(g, torch.zeros_like(g), LOW_SHARE, HIGH_SHARE, "quantile")


def swapped_weights(g: Tensor) -> Tensor:
    return LOW_SHARE + HIGH_SHARE - samg_weights(g)


def power_weights(g: Tensor, power: float) -> Tensor:
    energy = guidance_energy(g, torch.zeros_like(g))
    return (energy + 1e-3 * energy.mean(EVERYTHING, keepdim=True)) ** power


def clamped(g: Tensor, cond: Tensor, share: float) -> Tensor:
    return micrograin(g, share, 1.0 - share)


def without_mean(g: Tensor, cond: Tensor, keep: float) -> Tensor:
    """The guidance's mean over the picture, of each channel, kept by this share."""
    return g - (1.0 - keep) * g.mean(SPACE, keepdim=True)


def coarse(g: Tensor, size: int = 3) -> Tensor:
    padded = torch.nn.functional.pad(g, [size // 2] * 4, "reflect")
    return torch.nn.functional.avg_pool2d(padded, size, 1)


def bands(g: Tensor, cond: Tensor, low: float, high: float, size: int = 3) -> Tensor:
    smooth = coarse(g, size)
    return low * smooth + high * (g - smooth)


def orthogonal(
    g: Tensor, cond: Tensor, keep: float, dims: tuple[int, ...] = EVERYTHING, centre: bool = False
) -> Tensor:
    """The guidance's part parallel to the conditional prediction kept by this share, over these dimensions."""
    towards = cond - cond.mean(SPACE, keepdim=True) if centre else cond
    share = (g * towards).sum(dims, keepdim=True) / towards.square().sum(dims, keepdim=True).clamp_min(1e-8)
    return g - (1.0 - keep) * share * towards


def restored(guided: Tensor, cond: Tensor, deviation: float, mean: float) -> Tensor:
    """Each channel's deviation and mean moved this far back to the conditional prediction's (deviation: a power)."""
    centre = guided.mean(SPACE, keepdim=True)
    ratio = cond.std(SPACE, keepdim=True) / guided.std(SPACE, keepdim=True).clamp_min(1e-8)
    return (guided - centre) * ratio**deviation + torch.lerp(centre, cond.mean(SPACE, keepdim=True), mean)


def same_moments(limit: Limit, x: Tensor) -> Tensor:
    """The limit, then each channel's own mean and deviation again."""
    y = limit(x)
    scale = x.std(SPACE, keepdim=True) / y.std(SPACE, keepdim=True).clamp_min(1e-8)
    return (y - y.mean(SPACE, keepdim=True)) * scale + x.mean(SPACE, keepdim=True)


def hard(share: float) -> Limit:
    return partial(micrograin, q_low=share, q_high=1.0 - share)


def strong_tiles(x: Tensor) -> Tensor:
    return aqclip(x, TILE, STRIDE, **STRONG)


def plane_weights(g: Tensor, cond: Tensor, power: float) -> Tensor:
    """Each channel's guidance by its share of the energy, mean weight 1."""
    energy = g.square().mean(SPACE, keepdim=True)
    found = energy**power
    return found / found.mean(1, keepdim=True) * g


def composed(g: Tensor, cond: Tensor, *extras: Extra) -> Tensor:
    for each in extras:
        g = each(g, cond)
    return g


def shrunk(g: Tensor, cond: Tensor, share: float, dims: tuple[int, ...] = SPACE) -> Tensor:
    """Values smaller than `share` of the root mean square over dims fade out: g^3 / (g^2 + share^2 rms^2)."""
    square = g.square()
    return g * square / (square + share**2 * square.mean(dims, keepdim=True)).clamp_min(1e-20)


def shrunk_by_place(g: Tensor, cond: Tensor, share: float) -> Tensor:
    """Places of less energy than `share` of the sample's mean fade out: g E / (E + share mean(E))."""
    energy = guidance_energy(g, torch.zeros_like(g))
    return g * energy / (energy + share * energy.mean(SPACE, keepdim=True)).clamp_min(1e-20)


def compressed(g: Tensor, cond: Tensor, knee: float) -> Tensor:
    """Values beyond `knee` root mean squares of the sample are compressed, g / sqrt(1 + (g / (knee rms))^2)."""
    limit = knee * g.square().mean(EVERYTHING, keepdim=True).sqrt()
    return g / (1.0 + (g / limit).square()).sqrt()
