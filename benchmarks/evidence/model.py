"""The demo's network as a function of a noisy latent, and sampling loops that a method can reach into."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from copy import copy
from functools import partial
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from gimbal.host.sampling.attention import AttentionReader

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT / "demo"))
import recognise

import letters
import posters  # noqa: F401  (from here, as the path is set here)
from gimbal_demo import conditioning, latent

BATCH = 40  # samples in one call of the network, each with and without its class
HEADROOM = 64.0  # far above any pixel; a power of two


class Network:
    """The flow's velocity at a noise level, with and without the class."""

    def __init__(self, comfyui: Path, precision: str = "float32") -> None:
        self.network = recognise.load_network(comfyui)
        self.dtype = getattr(torch, precision)

    def in_float32(self) -> Network:
        other = copy(self)
        other.dtype = torch.float32
        return other

    def velocities(
        self, x: Tensor, sigma: float, labels: Tensor, reader: AttentionReader | None = None
    ) -> tuple[Tensor, Tensor]:
        """cond, uncond (N, 16, h, w), float32. reader: looks at the attention meanwhile."""
        call = _Wrapped(self.network) if reader is None else partial(reader.call, _Wrapped(self.network))

        def network(x: Tensor, level: Tensor, context: Tensor, y: Tensor) -> Tensor:
            return call(x, level, None, context, None, {"cond_or_uncond": [0, 1]}, y=y)

        return cond_and_uncond(network, x, torch.full((2 * len(x),), sigma * 1000), labels, self.dtype)


def cond_and_uncond(
    network: Callable[..., Tensor], x: Tensor, level: Tensor, labels: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """The network's output for x (N, C, h, w) with and without its classes, float32. level: (2N,), the timesteps."""
    context, pooled = conditioning.codes(torch.cat([labels, torch.full_like(labels, -1)]))
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        both = network(torch.cat([x, x]), level, context=context, y=pooled)
    cond, uncond = both.float().chunk(2)
    return cond, uncond


class _Wrapped:
    """The network as ComfyUI calls it, whose wrapper the reader was written for."""

    def __init__(self, network: nn.Module) -> None:
        self.class_obj = SimpleNamespace(diffusion_model=network)

    def __call__(
        self, x: Tensor, level: Tensor, _: None, context: Tensor, __: None, options: dict, y: Tensor
    ) -> Tensor:
        return self.class_obj.diffusion_model(x, level, context=context, y=y, transformer_options=options)


class GuidanceMethod(Protocol):
    """One method in one run. `reader` is for a rule that goes by the attention."""

    reader: AttentionReader | None

    def start(self, batch: int) -> None:
        """A batch's sampling begins: nothing of the batch before may be left."""

    def guide(self, cond: Tensor, uncond: Tensor) -> Tensor:
        """Guided velocity."""

    def limit(self, denoised: Tensor) -> Tensor:
        """What becomes of the guided prediction."""

    def measures(self) -> dict[str, float]:
        """What the rule itself has to report, after the run."""


class GuidedSampler:
    """A seed's starting noise and labels, the same for every method, and the first prediction, which none changes.

    Its loop equals gimbal.core.solvers.run but for rounding, which bfloat16 products magnify: it stays as it was when
    the stored results were made, so that they are made again to the last digit.
    """

    def __init__(self, network: Network, count: int, seed: int) -> None:
        side = letters.SIZE // latent.BLOCK
        generator = torch.Generator().manual_seed(seed)
        self.seed, self.network = seed, network
        self.labels = torch.arange(count) % len(conditioning.CLASSES)
        x = torch.randn(count, latent.CHANNELS, side, side, generator=generator)
        self._batches = list(zip(x.split(BATCH), self.labels.split(BATCH), strict=True))
        self._first: dict[int, tuple[Tensor, Tensor]] = {}

    def sample(self, steps: int, solver: str, rule: GuidanceMethod, batches: int | None = None) -> Tensor:
        """Latents (count, 16, h, w), or those of the first batches alone."""
        samples = []
        for index, (x, labels) in enumerate(self._batches[:batches]):
            rule.start(index)
            samples.append(self._run(x, labels, index, steps, solver, rule))
        return torch.cat(samples)

    def _run(self, x: Tensor, labels: Tensor, index: int, steps: int, solver: str, rule: GuidanceMethod) -> Tensor:
        older = None  # the last step's denoised and noise level
        for sigma, following in pairwise(recognise.schedule(steps)):
            cond, uncond = self._velocities(x, sigma, labels, index, rule)
            denoised = rule.limit(x - sigma * rule.guide(cond, uncond))
            towards = SOLVERS[solver](denoised, sigma, following, older)
            x = towards + (x - towards) * (following / sigma)
            older = denoised, sigma
        return x

    def _velocities(
        self, x: Tensor, sigma: float, labels: Tensor, index: int, rule: GuidanceMethod
    ) -> tuple[Tensor, Tensor]:
        if sigma < 1.0 or rule.reader is not None:
            return self.network.velocities(x, sigma, labels, rule.reader)
        if index not in self._first:
            self._first[index] = self.network.velocities(x, sigma, labels)
        return self._first[index]


def euler(denoised: Tensor, sigma: float, following: float, older: tuple[Tensor, float] | None) -> Tensor:
    return denoised


def dpmpp_2m(denoised: Tensor, sigma: float, following: float, older: tuple[Tensor, float] | None) -> Tensor:
    """As ComfyUI's sampler of that name runs flow models: in -log(sigma)."""
    if older is None or following == 0.0:
        return denoised
    before, sigma_before = older
    share = math.log(sigma / following) / math.log(sigma_before / sigma) / 2
    return denoised + (denoised - before) * share


SOLVERS = {"euler": euler, "dpmpp_2m": dpmpp_2m}


def decode_unclipped(latents: Tensor) -> Tensor:
    """Pictures (N, 3, H, W) before the decoder's clip to [-1, 1]: apart from it the decoder is linear."""
    return latent.decode(latents / HEADROOM) * HEADROOM
