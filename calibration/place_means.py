"""What full precision's network gave at its places in one run: the mean of each channel, for the layer correction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..core import places
from ..core.layer_correction import Layout
from ..core.places import Place
from . import storage
from .text import printable
from .validate import MOST_VALUE, range_fault

FORMAT = "gimbal.qdrift.means/1"
REMEDY = "record it again"


@dataclass(frozen=True, eq=False)
class PlaceMeans:
    """Of one run, on the CPU.

    Attributes:
        residual, block: the places of these kinds that every call of the network passed; both may be empty.
        mean: (steps, branches, W) float32, their channels one after another, residual ones first.
    """

    residual: tuple[Place, ...]
    block: tuple[Place, ...]
    mean: Tensor

    def __post_init__(self) -> None:
        width = sum(place.channels for place in (*self.residual, *self.block))
        if self.mean.dtype != torch.float32 or self.mean.ndim != 3 or self.mean.shape[2] != width:
            raise ValueError(f"PlaceMeans: mean is {self.mean.dtype} {tuple(self.mean.shape)}, not (.., .., {width}).")

    @classmethod
    def none(cls) -> PlaceMeans:
        """Of a network that has no place, or passes them now and then only."""
        return cls((), (), torch.zeros(1, 1, 0))

    def of(self, wanted: Sequence[Place]) -> Tensor:
        """(steps, branches, W) of these places alone. ValueError if one is not here."""
        held = (*self.residual, *self.block)
        missing = [place for place in wanted if place not in held]
        if missing:
            raise ValueError(f"full precision's run tells nothing of {missing[0].name}; {REMEDY}.")
        layout = Layout(held)
        return torch.cat([self.mean[:, :, layout.columns(place)] for place in wanted], 2)


def save(path: Path, means: PlaceMeans) -> None:
    """Whole or not at all; the folder is there. OSError as the system reports it."""
    metadata = {"format": FORMAT, **{kind: places.to_text(getattr(means, kind)) for kind in ("residual", "block")}}
    storage.write(path, {"mean": means.mean}, metadata)


def load(path: Path) -> PlaceMeans | None:
    """None if there is no such file.

    Raises:
        ValueError: it cannot be used; names it and the remedy.
    """
    if not path.exists():
        return None
    try:
        with storage.opened(path) as file:
            if file.metadata.get("format") != FORMAT:
                raise ValueError(f"not of this version ({file.metadata.get('format')!r:.80})")
            if file.layout.get("mean", ("",))[0] != "F32":
                raise ValueError("tensor mean is missing or not F32")
            file.verify(required=True)
            mean = file.tensor("mean")
            fault = range_fault("mean", mean, -MOST_VALUE, MOST_VALUE)
            if fault:
                raise ValueError(fault)
            residual, block = (places.from_text(file.metadata.get(kind, "")) for kind in ("residual", "block"))
            return PlaceMeans(residual, block, mean)
    except ValueError as error:
        raise ValueError(f"{printable(path, None)}: {printable(error, 400)}; {REMEDY}.") from error
