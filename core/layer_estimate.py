"""How the offsets of `layer_correction.py` are found: paired runs, one after another, in a closed loop (METHODS.md 4.5).

First the full-precision run is watched (`OutputMeans`), then the quantized one is sampled from the same noise with the
correction on (`ClosedLoop`): at each place the error that is left there is measured, taken into the estimate and taken
out in the same moment, before later layers see it. Measured with the correction off, every layer would take out again
what layers before it have taken out already.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from .layer_correction import LayerOffsets, Layout, add_offset
from .place_hooks import Act
from .places import Place
from .run_means import RunMeans, best, included


def position_mean(y: Tensor, axis: int = -1) -> Tensor:
    """Mean over positions, (B, C), in float32, or float64 of float64.

    Args:
        y: (B, ..., C) with axis -1, (B, C, *spatial) with axis 1; any float dtype.
    """
    dtype = torch.promote_types(y.dtype, torch.float32)
    if axis == -1:
        return y.flatten(1, -2).mean(1, dtype=dtype)
    return y.flatten(2).mean(2, dtype=dtype)


class OutputMeans:
    """Of one run: the mean of each place's channels, over all positions, at each noise level and in each branch.

    Args:
        layout: of the places. levels: S, noise levels at which the network is called in the run.
        branches: of the guidance: 2 with a negative prompt.
        device: of the network.
    """

    def __init__(self, layout: Layout, levels: int, branches: int = 2, device: torch.device | str = "cpu") -> None:
        self.layout = layout
        self._sums = torch.zeros(levels, branches, layout.width, device=device)
        self._counts = torch.zeros(levels, branches, len(layout.places), dtype=torch.int64)
        self._number = {place: number for number, place in enumerate(layout.places)}

    def at(self, level: int, branches: Sequence[int]) -> Act:
        """What `place_hooks.acting` is to do in one network call; it changes no output.

        Args:
            level: index of the noise level.
            branches: of the chunks of the batch, in order, as ComfyUI's cond_or_uncond.
        """

        def watch(place: Place, y: Tensor) -> Tensor:
            for branch, mean in zip(branches, _chunk_means(place, y, branches), strict=True):
                self._sums[level, branch, self.layout.columns(place)] += mean
                self._counts[level, branch, self._number[place]] += 1
            return y

        return watch

    def values(self) -> Tensor:
        """(S, branches, W) float32. A branch that was never called at a level has the others' mean there.

        Raises:
            ValueError: a place was not passed at some level.
        """
        missing = (self._counts.sum(1) == 0).nonzero()
        if len(missing):
            level, number = missing[0].tolist()
            raise ValueError(
                f"OutputMeans: {self.layout.places[number].name} was not passed at level {level + 1} of "
                f"{len(self._counts)} ({len(missing)} such); leave out places that some calls skip."
            )
        repeats = torch.tensor([place.channels for place in self.layout.places])
        counts = self._counts.repeat_interleave(repeats, 2).to(self._sums.device)
        pooled = self._sums.sum(1, keepdim=True) / counts.sum(1, keepdim=True)
        return torch.where(counts > 0, self._sums / counts.clamp(min=1), pooled)


class ClosedLoop:
    """One quantized run: measures what is left of the error at each place, and takes it out at once.

    Args:
        layout: of the places.
        groups: for each noise level of the run the row of offsets that it shares, 0 to G - 1.
        full: (S, branches, W) from `OutputMeans.values` of the full-precision run with the same noise and prompts.
        earlier: the runs before this one, of shape (G, W).
    Raises:
        ValueError: the shapes do not fit.
    """

    def __init__(self, layout: Layout, groups: Sequence[int], full: Tensor, earlier: RunMeans) -> None:
        rows = max(groups, default=-1) + 1
        if full.ndim != 3 or (len(full), full.shape[2]) != (len(groups), layout.width):
            raise ValueError(
                f"ClosedLoop: full is {tuple(full.shape)}; pass ({len(groups)}, branches, {layout.width})."
            )
        if sorted(set(groups)) != list(range(rows)) or earlier.mean.shape != (rows, layout.width):
            raise ValueError(
                f"ClosedLoop: groups {list(groups)} and earlier runs of {tuple(earlier.mean.shape)} do not fit; number "
                "the groups from 0 without a gap, and give earlier runs a row each."
            )
        self.layout, self._groups, self._full, self._count = layout, groups, full, earlier.count
        self._mean, self._m2 = (part.to(full.device, torch.float32) for part in (earlier.mean, earlier.m2))
        self._sums = torch.zeros(rows, layout.width, device=full.device)
        self._counts: dict[tuple[int, Place], int] = {}

    def at(self, level: int, branches: Sequence[int]) -> Act:
        """What `place_hooks.acting` is to do in one network call. Arguments as in `OutputMeans.at`."""
        group = self._groups[level]

        def correct(place: Place, y: Tensor) -> Tensor:
            columns = self.layout.columns(place)
            left = [
                self._full[level, branch, columns] - mean
                for branch, mean in zip(branches, _chunk_means(place, y, branches), strict=True)
            ]
            count = self._counts.get((group, place), 0) + len(left)
            self._counts[group, place] = count
            self._sums[group, columns] += sum(left)
            difference = self._sums[group, columns] / count
            mean, m2 = included(self._count, self._mean[group, columns], self._m2[group, columns], difference)
            return add_offset(y, best(self._count + 1, mean, m2), place.axis)

        return correct

    def difference(self) -> Tensor:
        """(G, W) float32: the run's mean difference, for `RunMeans.with_run`.

        Raises:
            ValueError: a place was not passed in some group, as in a run that was cancelled.
        """
        wanted = (self._sums.shape[0]) * len(self.layout.places)
        if len(self._counts) < wanted:
            raise ValueError(
                f"ClosedLoop: {wanted - len(self._counts)} of {wanted} means were not measured; take whole runs only."
            )
        counts = [[self._counts[group, place] for place in self.layout.places] for group in range(len(self._sums))]
        repeats = torch.tensor([place.channels for place in self.layout.places])
        return self._sums / torch.tensor(counts).repeat_interleave(repeats, 1).to(self._sums.device)


def offsets(layout: Layout, sigmas: Sequence[float], groups: Sequence[int], runs: RunMeans) -> LayerOffsets:
    """The table to be used: the runs' means, shrunk where two runs or more tell their error.

    Args:
        sigmas: S noise levels of the network's calls, positive and decreasing. groups: as in `ClosedLoop`. Between two
            groups the edge is the geometric mean of the levels beside it.
    Raises:
        ValueError: there are no runs, or groups do not follow one another.
    """
    if runs.count == 0:
        raise ValueError("layer_estimate.offsets: there are no runs; measure one at least.")
    if len(sigmas) != len(groups) or any(b not in (a, a + 1) for a, b in pairwise(groups)):
        raise ValueError(
            f"layer_estimate.offsets: groups {list(groups)} of {len(sigmas)} levels must follow in order."
        )
    ends = [
        math.sqrt(high * low) for (high, low), (a, b) in zip(pairwise(sigmas), pairwise(groups), strict=True) if a != b
    ]
    sigma_end = torch.tensor([*ends, 0.0], dtype=torch.float64)
    return LayerOffsets(layout.places, sigma_end, best(runs.count, runs.mean, runs.m2).float())


def even_groups(levels: int, groups: int) -> list[int]:
    """`levels` noise levels in groups of as equal a size as can be, in order."""
    if not 1 <= groups <= levels:
        raise ValueError(f"even_groups: {groups} groups of {levels} levels; pass 1 to {levels}.")
    return [level * groups // levels for level in range(levels)]


def _chunk_means(place: Place, y: Tensor, branches: Sequence[int]) -> list[Tensor]:
    """One (C,) for each chunk of the batch."""
    if not branches or len(y) % len(branches):
        raise ValueError(
            f"{place.name}: a batch of {len(y)} does not divide into {len(branches)} chunks; leave this place out."
        )
    return list(position_mean(y, place.axis).float().unflatten(0, (len(branches), -1)).mean(1))
