"""Overlapping tiles on a latent: where they lie, and sums over them that never copy the latent tile by tile.

An axis is cut into bands, at every start and every end of a tile. All positions of a band lie in the same tiles, so
whatever is said per tile needs saying only once per band, and statistics of tiles are merged from those of bands.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby, pairwise, product
from typing import NamedTuple

import torch
from torch import Tensor


class Band(NamedTuple):
    """Positions start to stop - 1, and the tiles that all of them lie in."""

    start: int
    stop: int
    tiles: range


@dataclass(frozen=True)
class Axis:
    """The tiles of one axis: tile k covers starts[k] to starts[k] + tile - 1."""

    length: int
    tile: int
    stride: int
    starts: tuple[int, ...]
    bands: tuple[Band, ...]

    @property
    def depth(self) -> int:
        """The most tiles that any position lies in."""
        return max(len(band.tiles) for band in self.bands)

    def covers(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """The tiles of each band: (depth, bands) indices, len(starts) where a band has fewer, and their number (bands,)."""
        none = len(self.starts)
        padded = [[*band.tiles, *[none] * (self.depth - len(band.tiles))] for band in self.bands]
        counts = [len(band.tiles) for band in self.bands]
        return _to_device(torch.tensor(padded).T.contiguous(), device), _to_device(torch.tensor(counts), device)

    def heights(self, device: torch.device) -> Tensor:
        """(bands,) number of positions of each band."""
        return _to_device(torch.tensor([band.stop - band.start for band in self.bands]), device)


class Grid(NamedTuple):
    rows: Axis
    columns: Axis

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.rows.starts), len(self.columns.starts)


class Block(NamedTuple):
    """A piece of a latent small enough to stay in the cache: some samples, some frames, some bands of one height."""

    batch: slice
    frames: slice
    bands: slice
    rows: slice
    height: int

    def of(self, x: Tensor) -> Tensor:
        """This block of x (B, F, C, H, W), as a view (b, f, C, bands, height, W)."""
        return x[self.batch, self.frames, :, self.rows].unflatten(3, (-1, self.height))


def tile_grid(height: int, width: int, tile: int, stride: int) -> Grid:
    """The tiles of a height x width latent; together they cover every position.

    Tiles start every `stride` positions. Where that does not end at the border, one more tile does; a tile larger than
    the latent is cut to the latent's size.

    Raises:
        ValueError: an argument is below 1, or stride is above tile, which would leave gaps.
    """
    if height < 1 or width < 1:
        raise ValueError(f"tile_grid: the latent is {height} x {width}; pass one with at least one position.")
    if tile < 1:
        raise ValueError(f"tile_grid: tile is {tile}; use at least 1.")
    if not 1 <= stride <= tile:
        raise ValueError(f"tile_grid: stride is {stride}; use 1 to tile ({tile}), or positions would be left out.")
    return Grid(_axis(height, tile, stride), _axis(width, tile, stride))


def as_frames(x: Tensor) -> Tensor:
    """A latent (B, C, H, W) or (B, C, F, H, W), as a view (B, F, C, H, W) whose pictures F are tiled one by one."""
    if x.ndim not in (4, 5) or not x.is_floating_point() or x.numel() == 0:
        raise ValueError(
            f"as_frames: x is {x.dtype} of shape {tuple(x.shape)}; "
            "pass a non-empty float tensor (B, C, H, W) or (B, C, F, H, W)."
        )
    return x.transpose(1, 2) if x.ndim == 5 else x.unsqueeze(1)


def tile_means(x: Tensor, grid: Grid) -> Tensor:
    """Mean of each tile: (..., H, W) -> (..., rows, columns)."""
    return _axis_means(_axis_means(x.mT, grid.rows).mT, grid.columns)


def tile_statistics(x: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
    """Mean and (population) variance of each tile over its channels and positions.

    A constant tile has exactly its value as mean and exactly 0 as variance: everything is measured from one of the
    tile's own elements, which also keeps the variance accurate where the mean is large.

    Args:
        x: (B, F, C, H, W), see as_frames.
    Returns:
        Two float32 tensors (B, F, rows, columns).
    """
    batch, frames, _, _, width = x.shape
    mean = torch.empty(batch, frames, len(grid.rows.bands), width, device=x.device)  # per band and column of positions
    variance = torch.empty_like(mean)
    for block in blocks(x, grid.rows):
        part = block.of(x).float()
        origin = part[:, :, :1, :, :1]
        offset = part - origin
        shift = offset.mean(4, keepdim=True).mean(2, keepdim=True)  # one dimension at a time is ten times faster
        mean[block.batch, block.frames, block.bands] = (shift + origin)[:, :, 0, :, 0]
        variance[block.batch, block.frames, block.bands] = offset.sub_(shift).square_().mean(4).mean(2)

    columns = grid.columns
    starts = _to_device(torch.tensor(columns.starts), x.device)
    positions = starts[:, None] + torch.arange(columns.tile, device=x.device)  # (columns, tile)
    mean, variance = _merge(mean, variance, positions, torch.ones_like(positions, dtype=torch.float32))
    members, weight = _row_members(grid.rows, x.device)
    mean, variance = _merge(mean.mT, variance.mT, members, weight)
    return mean.mT, variance.mT


def blocks(x: Tensor, rows: Axis) -> Iterator[Block]:
    """Cut x (B, F, C, H, W) into blocks, whole pictures where they are small and runs of equal bands where not."""
    batch, frames, channels, _, width = x.shape
    # Large enough that threads wait for each other rarely, small enough for the CPU's cache; elsewhere few launches.
    elements = 2**20 if x.device.type == "cpu" else 2**24
    # A float32 work tensor then takes at most half the bytes of x.
    elements = min(elements, max(x.numel() * x.element_size() // 8, 2**14))
    heights = [band.stop - band.start for band in rows.bands]
    for height, run in groupby(range(len(heights)), key=heights.__getitem__):
        run = list(run)
        room = elements // (channels * height * width)  # bands that fit
        pieces = product(
            _split(0, batch, room // (len(run) * frames)),
            _split(0, frames, room // len(run)),
            _split(run[0], run[-1] + 1, room),
        )
        for samples, pictures, bands in pieces:
            top = rows.bands[bands.start].start
            yield Block(samples, pictures, bands, slice(top, rows.bands[bands.stop - 1].stop), height)


def _axis(length: int, tile: int, stride: int) -> Axis:
    tile = min(tile, length)
    starts = (*range(0, length - tile, stride), length - tile)
    cuts = sorted({*starts, *(start + tile for start in starts)})
    bands = (Band(a, b, range(bisect_right(starts, a - tile), bisect_right(starts, a))) for a, b in pairwise(cuts))
    return Axis(length, tile, stride, starts, tuple(bands))


def _axis_means(x: Tensor, axis: Axis) -> Tensor:
    """Means over the tiles of the last dimension. Tensor.unfold is a view: nothing is copied."""
    means = x.unfold(-1, axis.tile, axis.stride).mean(-1)
    if means.shape[-1] < len(axis.starts):  # the tile that was moved to end at the border
        means = torch.cat((means, x[..., -axis.tile :].mean(-1, keepdim=True)), dim=-1)
    return means


def _row_members(rows: Axis, device: torch.device) -> tuple[Tensor, Tensor]:
    """The bands of each tile, (tiles, n) indices, and how many positions each holds; 0 for padding."""
    members = [[i for i, band in enumerate(rows.bands) if k in band.tiles] for k in range(len(rows.starts))]
    most = max(map(len, members))
    sizes = [[rows.bands[i].stop - rows.bands[i].start for i in m] + [0] * (most - len(m)) for m in members]
    padded = [m + m[:1] * (most - len(m)) for m in members]
    return _to_device(torch.tensor(padded), device), _to_device(torch.tensor(sizes, dtype=torch.float32), device)


def _merge(mean: Tensor, variance: Tensor, members: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of unions of parts: the parts lie in the last dimension, union k is members[k] (n,)."""
    weight = weight / weight.sum(1, keepdim=True)
    means = mean.index_select(-1, members.flatten()).unflatten(-1, members.shape)  # (..., unions, n)
    origin = means[..., :1]  # measured from here, equal means add up to exactly 0
    means = means - origin
    shift = (means * weight).sum(-1, keepdim=True)
    variances = variance.index_select(-1, members.flatten()).unflatten(-1, members.shape)
    merged = variances.add_(means.sub_(shift).square_()).mul_(weight).sum(-1)
    return (shift + origin).squeeze(-1), merged


def _split(start: int, stop: int, size: int) -> list[slice]:
    """Equal pieces of start..stop of at most `size` (at least 1)."""
    pieces = -(-(stop - start) // max(size, 1))
    size = -(-(stop - start) // pieces)
    return [slice(a, min(a + size, stop)) for a in range(start, stop, size)]


def _to_device(x: Tensor, device: torch.device) -> Tensor:
    return x.to(device, non_blocking=True)  # does not wait for the device
