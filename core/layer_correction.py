"""Correction inside the network: an offset per channel at each place, by noise level (METHODS.md 4.5).

A quantized layer's error has a mean that depends on the channel and little on the sample: empirical bias correction
(Nagel et al. 2019) takes it out. `layer_estimate.py` finds the offsets; here they are kept, read and added.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .places import Place

if TYPE_CHECKING:
    from .place_hooks import Act

SIGMA, OFFSET, PLACES = "layer_sigma", "layer_offset", "layer_places"  # two tensors and a metadata entry
REMEDY = "calibrate again"


class Layout:
    """Where each place's channels lie in a row that holds all places' channels.

    Attributes:
        places: in the order of the row. width: of the row, the sum of their channels.
    """

    def __init__(self, places: Sequence[Place]) -> None:
        if not places or len({(place.name, place.part) for place in places}) < len(places):
            raise ValueError(f"Layout: {len(places)} places, none may be missing or twice; pass each place once.")
        self.places = tuple(places)
        self._columns: dict[Place, slice] = {}
        self.width = 0
        for place in self.places:
            self._columns[place] = slice(self.width, self.width + place.channels)
            self.width += place.channels

    def columns(self, place: Place) -> slice:
        """KeyError for a place that is not in it."""
        return self._columns[place]


@dataclass(frozen=True, eq=False)
class LayerOffsets:
    """What is added to the outputs of a network's places, at G noise levels.

    Attributes:
        places: P of them, with W channels together.
        sigma: (G,) float64, positive, strictly decreasing. On the CPU.
        offset: (G, W), any float dtype, in the outputs' units: the places' channels one after another.
    Raises:
        ValueError: a shape, an order or a value cannot be, named.
    """

    places: tuple[Place, ...]
    sigma: Tensor
    offset: Tensor
    layout: Layout = field(init=False, repr=False)
    _levels: Tensor = field(init=False, repr=False)  # log sigma where the offsets are, so that no call copies it there

    def __post_init__(self) -> None:
        object.__setattr__(self, "layout", Layout(self.places))
        object.__setattr__(self, "_levels", self.sigma.log().float().to(self.offset.device))
        width = self.layout.width
        if self.sigma.dtype != torch.float64 or self.sigma.ndim != 1 or len(self.sigma) == 0:
            raise ValueError(f"LayerOffsets: sigma is {_said(self.sigma)}; pass one or more float64 noise levels.")
        if not (self.sigma.isfinite() & (self.sigma > 0)).all() or (self.sigma.diff() >= 0).any():
            raise ValueError(f"LayerOffsets: sigma is {self.sigma.tolist()}; pass positive levels that fall strictly.")
        if not self.offset.is_floating_point() or self.offset.shape != (len(self.sigma), width):
            raise ValueError(
                f"LayerOffsets: offset is {_said(self.offset)}; {len(self.sigma)} levels and these {len(self.places)} "
                f"places need ({len(self.sigma)}, {width}) floats."
            )
        if self.offset.device.type != "meta" and not self.offset.isfinite().all():
            raise ValueError("LayerOffsets: offset holds NaN or infinity; leave the run that gave it out.")

    def at(self, sigma: float | Tensor) -> Tensor:
        """The row for a noise level: linear in log sigma between the levels, held beyond them. No wait for the device.

        Args:
            sigma: positive, one value; of a tensor of several, the first.
        Returns:
            (W,) float32 on the offsets' device. At a stored level it is the stored row.
        """
        levels = self._levels
        given = sigma.flatten()[:1] if isinstance(sigma, Tensor) else torch.full((1,), sigma, device=levels.device)
        wanted = given.to(levels).log()
        after = torch.searchsorted(-levels, -wanted)  # the first level at or below it; G beyond the last
        last = len(levels) - 1
        above, below = (after - 1).clamp(min=0), after.clamp(max=last)
        high, low = levels[above], levels[below]
        share = ((high - wanted) / (high - low).clamp(min=torch.finfo(torch.float32).tiny)).clamp(0.0, 1.0)
        rows = (self.offset.index_select(0, each).float()[0] for each in (above, below))
        return torch.lerp(*rows, share)

    def acting(self, sigma: float | Tensor, strength: float = 1.0) -> Act:
        """What `place_hooks.acting` is to do in a network call at this noise level: add `strength` times the offsets.

        Strength 0 gives every tensor back as it is, bit for bit.

        Raises:
            ValueError: strength is not finite.
        """
        if not math.isfinite(strength):
            raise ValueError(
                f"LayerOffsets.acting: strength is {strength}; pass a finite number, 0 for no correction."
            )
        if strength == 0.0:
            return lambda place, y: y
        row = self.at(sigma) * strength
        return lambda place, y: add_offset(y, row[self.layout.columns(place)], place.axis)

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> LayerOffsets:
        """The same with the offsets on a device, and in another dtype if one is given."""
        return LayerOffsets(self.places, self.sigma, self.offset.to(device, dtype))

    def only(self, places: Sequence[Place]) -> LayerOffsets:
        """The offsets of these places alone, e.g. of those that a network has. ValueError if a place is not here."""
        unknown = [place for place in places if place not in self.places]
        if unknown:
            raise ValueError(f"LayerOffsets.only: {unknown[0]} has no offsets here; pass places that were calibrated.")
        columns = [self.offset[:, self.layout.columns(place)] for place in places]
        return LayerOffsets(tuple(places), self.sigma, torch.cat(columns or [self.offset[:, :0]], 1))

    def to_file(self) -> tuple[dict[str, Tensor], dict[str, str]]:
        """Tensors and metadata for a safetensors file.

        layer_sigma (G,) float64; layer_offset (G, W) bfloat16, whose range is float32's, as single channels of large
        models exceed float16's; its rounding, at most 0.4 %, is far below the offsets' own error. layer_places is
        JSON: for each place [name, part, channels, axis].
        """
        listed = [[place.name, place.part, place.channels, place.axis] for place in self.places]
        return {SIGMA: self.sigma, OFFSET: self.offset.cpu().to(torch.bfloat16)}, {PLACES: json.dumps(listed)}

    @classmethod
    def from_file(cls, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> LayerOffsets | None:
        """What `to_file` gave, checked; None if a file has none of it.

        Raises:
            ValueError: a part is missing or cannot be.
        """
        given = [name for name in (SIGMA, OFFSET) if name in tensors] + [PLACES] * (PLACES in metadata)
        if not given:
            return None
        if len(given) < 3:
            raise ValueError(f"layer correction: of its three parts the file has {', '.join(given)} only; {REMEDY}.")
        try:
            places = tuple(Place(str(name), *map(int, rest)) for name, *rest in json.loads(metadata[PLACES]))
        except (ValueError, TypeError) as error:
            raise ValueError(f"layer correction: {PLACES} cannot be read ({error}); {REMEDY}.") from error
        return cls(places, tensors[SIGMA], tensors[OFFSET])


def add_offset(y: Tensor, offset: Tensor, axis: int = -1) -> Tensor:
    """y + offset per channel.

    Args:
        y: (B, ..., C) with axis -1, (B, C, *spatial) with axis 1; any float dtype.
        offset: (C,), on y's device. Rounded to y's dtype, so that no wider copy of y is made.
        axis: of the channels.
    Returns:
        Same shape, dtype and device, a new tensor.
    Raises:
        ValueError: y has another number of channels.
    """
    if y.shape[axis] != len(offset):
        raise ValueError(
            f"add_offset: y has {y.shape[axis]} channels of {tuple(y.shape)} at dimension {axis}, offset {len(offset)}; "
            "use offsets of this model."
        )
    return y + as_channels(offset.to(y.dtype), y, axis)


def as_channels(values: Tensor, y: Tensor, axis: int) -> Tensor:
    """View (C,) so that it broadcasts along y's channels."""
    return values if axis == -1 else values.view(-1, *[1] * (y.ndim - axis - 1))


def _said(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"
