"""A training's state in a file, from which it goes on after a stop as if there had been none."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

RECENT = 200  # steps whose mean loss is told


@dataclass(frozen=True)
class Told:
    """What a training says of itself: steps done, their time, and the losses of the last RECENT steps."""

    done: int = 0
    seconds: float = 0.0
    losses: tuple[float, ...] = ()

    @property
    def loss(self) -> float:
        return sum(self.losses) / len(self.losses)

    def after(self, loss: float, seconds: float) -> Told:
        return Told(self.done + 1, seconds, (*self.losses[1 - RECENT :], loss))

    def recipe(self) -> dict[str, object]:
        return {"steps_done": self.done, "seconds": round(self.seconds), "final_loss": round(self.loss, 4)}


class Resume:
    """The file. average: the averaged weights, filled in place. generator: of all that the training draws."""

    def __init__(
        self,
        path: Path,
        network: nn.Module,
        optimizer: torch.optim.Optimizer,
        average: dict[str, Tensor],
        generator: torch.Generator,
    ) -> None:
        self._path, self._average, self._generator = path, average, generator
        self._parts = {"network": network, "optimizer": optimizer}

    def load(self, seed: int, rate: float) -> Told:
        """Fill in what the file holds, where there is one. ValueError if it is of another seed or peak rate."""
        if not self._path.exists():
            return Told()
        kept = torch.load(self._path, weights_only=True)
        if (kept["seed"], kept["rate"]) != (seed, rate):
            raise ValueError(
                f"{self._path} is of --seed {kept['seed']} and --rate {kept['rate']:g}, not of --seed {seed} and --rate "
                f"{rate:g}; ask for the same, or remove it."
            )
        for name, part in self._parts.items():
            part.load_state_dict(kept[name])
        self._generator.set_state(kept["generator"])
        for name, value in kept["average"].items():
            self._average[name].copy_(value)
        print(f"going on after step {kept['done']}", flush=True)
        return Told(kept["done"], kept["seconds"], tuple(kept["losses"]))

    def save(self, told: Told, seed: int, rate: float) -> None:
        """At once or not at all: a stop while it is written leaves the file there was."""
        kept: dict[str, object] = {name: part.state_dict() for name, part in self._parts.items()}
        kept |= {"average": self._average, "generator": self._generator.get_state(), "seed": seed, "rate": rate}
        draft = self._path.with_suffix(".draft")
        self._path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(kept | asdict(told), draft)
        draft.replace(self._path)
