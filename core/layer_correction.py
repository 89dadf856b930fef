"""Correction inside the network: an offset per channel at each place, by noise level (METHODS.md 4.5).

A quantized layer's error has a mean that depends on the channel and little on the sample: empirical bias correction
(Nagel et al. 2019) takes it out. `layer_estimate.py` finds the offsets; here they are kept, read and added.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .places import Place, from_text, to_text

if TYPE_CHECKING:
    from .place_hooks import Act

SIGMA_END, OFFSET, PLACES = "layer_sigma_end", "layer_offset", "layer_places"  # two tensors and a metadata entry
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
    """What is added to the outputs of a network's places, in G ranges of noise levels.

    A range keeps one row: the loop that found it had that row at every level of the range, and sampling adds just that.

    Attributes:
        places: P of them, with W channels together.
        sigma_end: (G,) float64, strictly decreasing to 0: row g serves from above sigma_end[g] to sigma_end[g - 1], the
            first one without a limit. On the CPU.
        offset: (G, W), any float dtype, in the outputs' units: the places' channels one after another.
        layout: of the rows.
    Raises:
        ValueError: a shape, an order or a value cannot be, named.
    """

    places: tuple[Place, ...]
    sigma_end: Tensor
    offset: Tensor
    layout: Layout = field(init=False, repr=False)
    _edges: Tensor = field(init=False, repr=False)  # sigma_end where the offsets are, so that no call copies it there

    def __post_init__(self) -> None:
        object.__setattr__(self, "layout", Layout(self.places))
        object.__setattr__(self, "_edges", self.sigma_end.float().to(self.offset.device))
        width, ends = self.layout.width, self.sigma_end
        if ends.dtype != torch.float64 or ends.ndim != 1 or len(ends) == 0:
            raise ValueError(f"LayerOffsets: sigma_end is {_said(ends)}; pass one or more float64 noise levels.")
        if not ends.isfinite().all() or (ends.diff() >= 0).any() or float(ends[-1]) != 0.0:
            raise ValueError(f"LayerOffsets: sigma_end is {ends.tolist()}; pass levels that fall strictly, to 0.")
        if not self.offset.is_floating_point() or self.offset.shape != (len(ends), width):
            raise ValueError(
                f"LayerOffsets: offset is {_said(self.offset)}; {len(ends)} ranges and these {len(self.places)} places "
                f"need ({len(ends)}, {width}) floats."
            )
        if self.offset.device.type != "meta" and not self.offset.isfinite().all():
            raise ValueError("LayerOffsets: offset holds NaN or infinity; leave the run that gave it out.")

    def at(self, sigma: float | Tensor) -> Tensor:
        """The row for a noise level, (W,) float32 on the offsets' device. Does not wait for the device.

        Args:
            sigma: positive, one value; of a tensor of several, the first.
        """
        given = (
            sigma.flatten()[:1] if isinstance(sigma, Tensor) else torch.full((1,), sigma, device=self._edges.device)
        )
        index = (self._edges >= given.to(self._edges)).sum(0, keepdim=True).clamp(max=len(self._edges) - 1)
        return self.offset.index_select(0, index)[0].float()

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
        return LayerOffsets(self.places, self.sigma_end, self.offset.to(device, dtype))

    def within(self, high: float, low: float) -> LayerOffsets:
        """The same from noise level `high` down to `low`, both included, and nothing at other levels.

        Raises:
            ValueError: the levels do not fall, or low is negative.
        """
        if not high >= low >= 0.0:
            raise ValueError(f"LayerOffsets.within: from sigma {high} to {low}; pass levels that fall, to 0 at most.")
        edges = torch.tensor([high, low], dtype=torch.float32, device="cpu").double()
        # A row does not serve the level it ends at, so the last row ends one float32 step below `low`.
        below = float(torch.nextafter(edges[1].float(), torch.tensor(0.0, device="cpu")))
        top = float(edges[0])
        ends = sorted({*self.sigma_end.tolist(), top, below}, reverse=True)
        kept = [end >= below and start <= top for start, end in pairwise([math.inf, *ends])]
        rows = [int((self.sigma_end > end).sum()) for end in ends]
        offset = self.offset[rows] * torch.tensor(kept, device="cpu").to(self.offset)[:, None]
        return LayerOffsets(self.places, torch.tensor(ends, dtype=torch.float64, device="cpu"), offset)

    def only(self, places: Sequence[Place]) -> LayerOffsets:
        """The offsets of these places alone, e.g. of those that a network has. ValueError if a place is not here."""
        unknown = [place for place in places if place not in self.places]
        if unknown:
            raise ValueError(f"LayerOffsets.only: {unknown[0]} has no offsets here; pass places that were calibrated.")
        columns = [self.offset[:, self.layout.columns(place)] for place in places]
        return LayerOffsets(tuple(places), self.sigma_end, torch.cat(columns or [self.offset[:, :0]], 1))

    def to_file(self) -> tuple[dict[str, Tensor], dict[str, str]]:
        """Tensors and metadata for a safetensors file.

        layer_sigma_end (G,) float64; layer_offset (G, W) bfloat16, whose range is float32's, as single channels of large
        models exceed float16's; its rounding, at most 0.4 %, is far below the offsets' own error. layer_places is
        JSON: for each place [name, part, channels, axis].
        """
        tensors = {SIGMA_END: self.sigma_end, OFFSET: self.offset.cpu().to(torch.bfloat16)}
        return tensors, {PLACES: to_text(self.places)}

    @classmethod
    def from_file(cls, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> LayerOffsets | None:
        """What `to_file` gave, checked; None if a file has none of it.

        Raises:
            ValueError: a part is missing or cannot be.
        """
        given = [name for name in (SIGMA_END, OFFSET) if name in tensors] + [PLACES] * (PLACES in metadata)
        if not given:
            return None
        if len(given) < 3:
            raise ValueError(f"layer correction: of its three parts the file has {', '.join(given)} only; {REMEDY}.")
        try:
            places = from_text(metadata[PLACES])
        except ValueError as error:
            raise ValueError(f"layer correction: {PLACES} cannot be read ({error}); {REMEDY}.") from error
        return cls(places, tensors[SIGMA_END], tensors[OFFSET])


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
