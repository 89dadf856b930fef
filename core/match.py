"""Moment matching: the state after a step, given the mean and deviation that it should have (METHODS.md 4.3)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

Map = tuple[Tensor, Tensor]  # scale, shift


class MomentMatcher:
    """What `solvers.run` calls after each step: x becomes scale x + shift, per channel.

    Args:
        maps: for each step scale and shift, (C,) each, or None where the state stays as it is.
        mask: where to act, broadcasting against x, as in `run`; None: everywhere.
    """

    def __init__(self, maps: Sequence[Map | None], mask: Tensor | None = None):
        self._maps, self._mask = maps, mask
        self._ready: list[Map | None] | None = None

    def __call__(self, step: int, x: Tensor) -> Tensor:
        """x (B, C, *spatial) in float32 or float64, as the state of a run is; one pass, no wait for the device.

        Raises:
            ValueError: the maps have another number of channels than x.
        """
        if self._ready is None:  # all at once, so that no step waits for a transfer
            self._ready = [None if each is None else self._views(each, x) for each in self._maps]
        found = self._ready[step]
        if found is None:
            return x
        scale, shift = found
        mapped = torch.addcmul(shift, x, scale)
        return mapped if self._mask is None else torch.lerp(x, mapped, self._mask.to(mapped).expand_as(mapped))

    @staticmethod
    def _views(pair: Map, x: Tensor) -> Map:
        if len(pair[0]) != x.shape[1]:
            raise ValueError(
                f"MomentMatcher: maps of {len(pair[0])} channels, x has {x.shape[1]}; use this model's statistics."
            )
        scale, shift = (
            part.to(x.dtype).to(x.device, non_blocking=True).view(-1, *[1] * (x.ndim - 2)) for part in pair
        )
        return scale, shift
