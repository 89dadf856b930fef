"""The layer correction's part of a statistics file: two tensors, and the places' names in the metadata."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ..core.layer_correction import OFFSET, PLACES, REMEDY, SIGMA_END, LayerOffsets
from .text import printable

MOST_PLACES, MOST_NAME, MOST_CHANNELS = 20_000, 400, 2**20


def take(tensors: dict[str, Tensor], metadata: Mapping[str, str]) -> LayerOffsets | None:
    """The layer correction of a file; its tensors leave `tensors`. None if the file has none.

    Raises:
        ValueError: a part of it is missing or cannot be.
    """
    own = {name: tensors.pop(name) for name in (SIGMA_END, OFFSET) if name in tensors}
    try:
        found = LayerOffsets.from_file(own, metadata)
    except ValueError as error:
        raise ValueError(printable(error, 400)) from error  # it may quote the file
    fault = None if found is None else _fault(found)
    if fault:
        raise ValueError(f"layer correction: {fault}; {REMEDY}.")
    return found


def tensors_of(layers: LayerOffsets | None) -> dict[str, Tensor]:
    return {} if layers is None else layers.to_file()[0]


def metadata_of(layers: LayerOffsets | None) -> dict[str, str]:
    return {} if layers is None else layers.to_file()[1]


def merged(parts: Sequence[tuple[LayerOffsets | None, int]]) -> LayerOffsets | None:
    """The mean of several calibrations' offsets, each by its number of runs; None unless all have the same places and
    ranges of sigma. Each was found in a loop of its own, so each is an estimate of the same offsets."""
    first = parts[0][0]
    if first is None:
        return None
    total = torch.zeros_like(first.offset, dtype=torch.float64)
    for layers, runs in parts:
        if layers is None or layers.places != first.places or not torch.equal(layers.sigma_end, first.sigma_end):
            return None
        total += layers.offset.double() * runs
    offset = total / sum(runs for _, runs in parts)
    return LayerOffsets(first.places, first.sigma_end, offset.to(first.offset.dtype))


def described(layers: LayerOffsets) -> str:
    """ "layer correction at 12 places, 4 ranges of sigma"."""
    places, ranges = len(layers.places), len(layers.sigma_end)
    return f"layer correction at {places} place{'s' * (places > 1)}, {ranges} range{'s' * (ranges > 1)} of sigma"


def _fault(layers: LayerOffsets) -> str | None:
    if len(layers.places) > MOST_PLACES:
        return f"it has {len(layers.places)} places, more than {MOST_PLACES}"
    for place in layers.places:
        if not place.name or len(place.name) > MOST_NAME or not place.name.isprintable():
            return f"{PLACES} names {printable(place.name, 80)!r}, which is no module"
        if place.channels > MOST_CHANNELS:
            return f"{printable(place.name, 80)} has {place.channels} channels, more than {MOST_CHANNELS}"
    return None
