"""The demo's models as ComfyUI samples them: a guided prediction at a noise level, and the noise levels themselves."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from .model import ROOT, cond_and_uncond, conditioning, latent, letters, recognise

POSITIONS = 48 * 16**2  # of latents in one call of the network, each with and without its class
SIDE = letters.SIZE // latent.BLOCK  # of the latent of one letter

CLASSES = len(conditioning.CLASSES)
WEIGHTS = {"flow": "gimbal_letters_fp16", "eps": "gimbal_letters_eps_fp16", "posters": "gimbal_posters_fp16"}


@dataclass(frozen=True, eq=False)
class Subject:
    """A model, or a quantized form of it.

    kind: of WEIGHTS; all but "eps" predict the velocity. path: as gimbal.core.solvers calls it. sampling: ComfyUI's, the noise levels.
    """

    kind: str
    path: str
    network: nn.Module
    sampling: nn.Module
    dtype: torch.dtype

    def output(self, x: Tensor, sigma: float, labels: Tensor, cfg: float) -> Tensor:
        """Guided velocity or eps (N, C, h, w), float32, which is (x - denoised) / sigma for both."""
        batch = max(1, POSITIONS // x[0, 0].numel())
        parts = zip(x.split(batch), labels.split(batch), strict=True)
        return torch.cat([self._guided(part, sigma, classes, cfg) for part, classes in parts])

    def _guided(self, x: Tensor, sigma: float, labels: Tensor, cfg: float) -> Tensor:
        scale = 1.0 if self.path == "flow" else (1.0 + sigma**2) ** -0.5
        level = self.sampling.timestep(torch.full((2 * len(x),), sigma)).float()
        cond, uncond = cond_and_uncond(self.network, x * scale, level, labels, self.dtype)
        return torch.lerp(uncond, cond, cfg)

    def sigmas(self, scheduler: str, steps: int) -> list[float]:
        """ComfyUI's schedule: steps + 1 noise levels down to 0."""
        from comfy.samplers import calculate_sigmas

        return calculate_sigmas(self.sampling, scheduler, steps).tolist()

    def start(self, noise: Tensor, sigma: float) -> Tensor:
        """The state at the highest noise level, as ComfyUI makes it of standard normal noise."""
        return noise if self.path == "flow" else noise * math.sqrt(1.0 + sigma**2)


def load(kind: str, comfyui: Path, precision: str) -> Subject:
    """The demo model of this kind."""
    network = recognise.load_network(comfyui, weights(kind))
    from comfy.model_sampling import ModelSamplingDiscrete, ModelSamplingDiscreteFlow

    dtype = getattr(torch, precision)
    if kind == "eps":
        return Subject(kind, "ve", network, ModelSamplingDiscrete(), dtype)
    sampling = ModelSamplingDiscreteFlow()
    sampling.set_parameters(shift=3.0)
    return Subject(kind, "flow", network, sampling, dtype)


def weights(kind: str) -> Path:
    return ROOT / "demo" / "models" / f"{WEIGHTS[kind]}.safetensors"


def noise(count: int, seed: int, canvas: tuple[int, int] = (SIDE, SIDE)) -> Tensor:
    """(count, C, *canvas)."""
    return torch.randn(count, latent.CHANNELS, *canvas, generator=torch.Generator().manual_seed(seed))


@dataclass(frozen=True)
class Setting:
    """How a model is sampled. classes: "all", or "last", the second half of them; "first" is for calibrations. canvas:
    height and width of the latent."""

    kind: str
    solver: str
    steps: int = 20
    cfg: float = 3.0
    scheduler: str = ""
    classes: str = "all"
    canvas: tuple[int, int] = (SIDE, SIDE)

    @property
    def name(self) -> str:
        half = "" if self.classes == "all" else f", {self.classes} half of the classes"
        size = "" if self.canvas == (SIDE, SIDE) else f", {self.size}"
        return f"{self.kind} {self.solver}, {self.steps} steps, cfg {self.cfg:g}, {self.scheduler}{half}{size}"

    @property
    def size(self) -> str:
        return f"{self.canvas[0]} x {self.canvas[1]}"

    def labels(self, count: int) -> Tensor:
        return self._classes()[torch.arange(count) % len(self._classes())]

    def calibration_labels(self, count: int, generator: torch.Generator) -> Tensor:
        """As many different classes as there can be, drawn by chance."""
        classes = self._classes()
        return classes[torch.randperm(len(classes), generator=generator)[torch.arange(count) % len(classes)]]

    def _classes(self) -> Tensor:
        half = CLASSES // 2
        parts = {"all": slice(None), "first": slice(half), "last": slice(half, None)}
        return torch.arange(CLASSES)[parts[self.classes]]


SETTINGS = {
    "flow": (Setting("flow", "euler", scheduler="simple"),),
    "eps": (Setting("eps", "euler", scheduler="karras"), Setting("eps", "dpmpp_2m", scheduler="karras")),
}
OTHER_SCHEDULER = {"flow": "beta", "eps": "normal"}
