"""How quantized models are sampled."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .model import conditioning
from .subjects import SIDE

CLASSES = len(conditioning.CLASSES)


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
