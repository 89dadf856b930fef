"""SAMG against plain guidance: which runs are made."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from gimbal.core.samg import scale_map

from .runs import GuidedRow

STEPS = 10
LOW_SHARE, HIGH_SHARE = 2 / 3, 1.6  # the node's defaults
CFG = (1.0, 1.25, 1.5, 1.75, 2.0, 2.25, 2.5, 3.0, 3.5, 4.0, 4.5, 5.0, 6.0)
# Accuracy is a share of few samples: between closer scales it goes up and down by chance.
ACCURACY_CURVE = (1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0)
SAMG = {
    "minmax": (1.0, 1.5, 2.0, 2.5, 3.0, 4.0),
    "quantile": (1.0, 1.5, 2.0, 2.5, 3.0, 4.0),
    "bound": (2.0, 3.0, 4.0),
}
CONTROLS = ("shuffled", "swapped", "same mean", "same norm")
CONTROLLED = (2.0, 3.0)  # guidance scales at which the controls run, beside SAMG quantile


class PlainGuidance:
    reader = None

    def __init__(self, scale: float) -> None:
        self.scale = scale

    def start(self, batch: int) -> None:
        pass

    def guide(self, cond: Tensor, uncond: Tensor) -> Tensor:
        return torch.lerp(uncond, cond, self.scale)

    def limit(self, denoised: Tensor) -> Tensor:
        return denoised

    def measures(self) -> dict[str, float]:
        return {}


class SpatialGuidance(PlainGuidance):
    """SAMG, or a control that changes where its weights lie or spreads them evenly."""

    def __init__(self, scale: float, variant: str, seed: int) -> None:
        super().__init__(scale)
        self.variant, self.seed = variant, seed
        self.low, self.high = LOW_SHARE * scale, HIGH_SHARE * scale
        self.generator = torch.Generator()
        self.shares: list[float] = []

    def start(self, batch: int) -> None:
        self.generator.manual_seed(1000 * self.seed + batch)

    def guide(self, cond: Tensor, uncond: Tensor) -> Tensor:
        normalize = "minmax" if self.variant == "minmax" else "quantile"
        curve = "bound" if self.variant == "bound" else "linear"
        weights = scale_map(cond, uncond, self.low, self.high, normalize, curve)  # (B, 1, h, w)
        guidance = cond - uncond
        weights = self._controlled(weights, guidance)
        self.shares.append(float(weights.mean()) / self.scale)
        return uncond + weights * guidance

    def _controlled(self, weights: Tensor, guidance: Tensor) -> Tensor:
        if self.variant == "shuffled":
            flat = weights.flatten(1)
            places = torch.rand(flat.shape, generator=self.generator).argsort(1)
            return flat.gather(1, places).reshape(weights.shape)
        if self.variant == "swapped":
            return self.low + self.high - weights
        if self.variant == "same mean":
            return weights.mean((1, 2, 3), keepdim=True).expand_as(weights)
        if self.variant == "same norm":
            squares = guidance.square()
            ratio = (weights.square() * squares).sum((1, 2, 3), keepdim=True) / squares.sum((1, 2, 3), keepdim=True)
            return ratio.sqrt().expand_as(weights)
        return weights

    def measures(self) -> dict[str, float]:
        return {"mean_scale": sum(self.shares) / len(self.shares)}


def name(variant: str, scale: float) -> str:
    return f"{variant}, {scale:g}"


def rows() -> Iterator[GuidedRow]:
    for scale in CFG:
        yield GuidedRow(name("CFG", scale), STEPS, "euler", lambda seed, scale=scale: PlainGuidance(scale))
    spatial = [(variant, scale) for variant, scales in SAMG.items() for scale in scales]
    for variant, scale in spatial + [(control, scale) for scale in CONTROLLED for control in CONTROLS]:
        rule = partial(SpatialGuidance, scale, variant)
        yield GuidedRow(name(variant, scale), STEPS, "euler", rule)
