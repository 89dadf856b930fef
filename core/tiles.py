"""Overlapping tiles on a latent: where they lie, and sums over them that never copy the latent tile by tile.

An axis is cut into bands, at every start and every end of a tile. All positions of a band lie in the same tiles, so
whatever is said per tile needs saying only once per band, and statistics of tiles are merged from those of bands.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, groupby, pairwise, product
from math import gcd
from typing import NamedTuple

import torch
from torch import Tensor

from . import device


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
    unit: int  # divides all starts and ends of tiles and bands
    bands: tuple[Band, ...]

    @property
    def depth(self) -> int:
        """The most tiles that any position lies in."""
        return max(len(band.tiles) for band in self.bands)

    def tiles_of_bands(self) -> list[list[int]]:
        """The tiles of each band, by layers of tiles that do not overlap: depth x bands, len(starts) where there is none."""
        depth, none = self.depth, len(self.starts)
        padded = [[*band.tiles, *[none] * (depth - len(band.tiles))] for band in self.bands]
        return [list(layer) for layer in zip(*padded, strict=True)]

    def cells(self) -> list[int]:
        """The band of each unit."""
        return [i for i, band in enumerate(self.bands) for _ in range(band.start, band.stop, self.unit)]


class Grid(NamedTuple):
    rows: Axis
    columns: Axis  # whose bands are all one unit wide

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.rows.starts), len(self.columns.starts)


class TileLayers(NamedTuple):
    """The tiles of each cell, a unit of the rows by a unit of the columns, on a latent's device."""

    rows: Tensor  # (depth, cells) indices, the number of tiles where a cell has fewer
    columns: Tensor  # the same
    share: Tensor  # (cells, 1, cells, 1), 1 / number of tiles, ready to broadcast against as_cells


class Block(NamedTuple):
    """A piece of a latent small enough to stay in the cache: some samples, some frames, some bands of one height."""

    batch: slice
    frames: slice
    bands: slice
    rows: slice
    height: int

    def of(self, x: Tensor) -> Tensor:
        """This block of x (B, F, C, H, W), as a view (b, f, C, bands, height, W)."""
        part: Tensor = x[self.batch, self.frames, :, self.rows].unflatten(3, (-1, self.height))
        return part


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
    return Grid(_axis(height, tile, stride), _axis(width, tile, stride, even=True))


def as_frames(x: Tensor) -> Tensor:
    """A latent (B, C, H, W) or (B, C, F, H, W), as a view (B, F, C, H, W) whose pictures F are tiled one by one."""
    if x.ndim not in (4, 5) or not x.is_floating_point() or x.numel() == 0:
        raise ValueError(
            f"as_frames: x is {x.dtype} of shape {tuple(x.shape)}; "
            "pass a non-empty float tensor (B, C, H, W) or (B, C, F, H, W)."
        )
    return x.transpose(1, 2) if x.ndim == 5 else x.unsqueeze(1)


def as_cells(x: Tensor, grid: Grid) -> Tensor:
    """(..., H, W) -> (..., rows of cells, height, columns of cells, width), a view."""
    cells: Tensor = x.unflatten(-1, (-1, grid.columns.unit)).unflatten(-3, (-1, grid.rows.unit))
    return cells


def cover(grid: Grid, place: torch.device) -> TileLayers:
    """Which tiles lie over each cell, in one transfer that the device is not waited for."""
    tables = []  # of each axis depth + 1 rows: the tiles of each cell, and their number
    for axis in grid:
        cells = axis.cells()
        tables.append([[layer[band] for band in cells] for layer in axis.tiles_of_bands()])
        tables[-1].append([len(axis.bands[band].tiles) for band in cells])
    together = torch.tensor([*chain(*chain(*tables))]).to(place, non_blocking=True)
    sizes = [len(table) * len(table[0]) for table in tables]
    rows, columns = (t.view(len(table), -1) for t, table in zip(together.split(sizes), tables, strict=True))
    return TileLayers(rows[:-1], columns[:-1], (rows[-1, :, None, None, None] * columns[-1, :, None]).reciprocal())


def tile_means(x: Tensor, grid: Grid) -> Tensor:
    """Mean of each tile: (..., H, W) -> (..., rows, columns)."""
    cells = as_cells(x, grid)
    # On the CPU a mean over two dimensions takes several times as long as over one after the other.
    cells = cells.mean(-3).mean(-1) if device.on_host(x) else cells.mean((-3, -1))
    return _windows(_windows(cells.mT, grid.rows).mean(-1).mT, grid.columns).mean(-1)


def tile_statistics(x: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
    """Mean and (population) variance of each tile over its channels and positions.

    A constant tile has exactly its value as mean and exactly 0 as variance: everything is measured from one of the
    tile's own elements, which also keeps the variance accurate where the mean is large.

    Args:
        x: (B, F, C, H, W), see as_frames.
    Returns:
        Two float32 tensors (B, F, rows, columns).
    """
    if not device.on_host(x):
        return _merge_tiles(*_statistics_of_cells(x, grid), grid)
    batch, frames, _, _, width = x.shape
    mean = torch.empty(batch, frames, len(grid.rows.bands), width, device=x.device)  # per band and column of positions
    variance = torch.empty_like(mean)
    for block in blocks(x, grid.rows):
        part = block.of(x).movedim(3, 2).float()  # (b, f, bands, C, height, W)
        origin = part[:, :, :, :1, :1]
        offset = torch.sub(part, origin, out=torch.empty(part.shape, device=x.device)).flatten(3, 4)
        shift = offset.mean(3, keepdim=True)  # over one dimension: over two it takes ten times as long
        mean[block.batch, block.frames, block.bands] = shift.add(origin[:, :, :, 0])[:, :, :, 0]
        variance[block.batch, block.frames, block.bands] = offset.sub_(shift).square_().mean(3)

    cells = (-1, grid.columns.unit)
    mean, variance = _merge(mean.unflatten(-1, cells), variance.unflatten(-1, cells))
    mean, variance = _merge(_windows(mean, grid.columns), _windows(variance, grid.columns))  # (B, F, bands, columns)
    units = torch.tensor(grid.rows.cells())
    mean, variance = (_windows(t.index_select(2, units).mT, grid.rows) for t in (mean, variance))
    mean, variance = _merge(mean, variance)
    return mean.mT, variance.mT


def _statistics_of_cells(x: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
    """Mean and variance of each cell, (B, F, cells, cells), in few operators and one copy of x."""
    cells, inside = as_cells(x.float(), grid), (2, 4, 6)
    origin = cells[:, :, :1, :, :1, :, :1]
    offset = cells - origin
    shift = offset.mean(inside, keepdim=True)
    mean = (shift + origin)[:, :, 0, :, 0, :, 0]
    return mean, offset.sub_(shift).square_().mean(inside)


def _merge_tiles(mean: Tensor, variance: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
    """Statistics of tiles from those of cells."""
    mean, variance = _merge(_windows(mean, grid.columns), _windows(variance, grid.columns))  # (B, F, cells, columns)
    mean, variance = _merge(_windows(mean.mT, grid.rows), _windows(variance.mT, grid.rows))
    return mean.mT, variance.mT


def blocks(x: Tensor, rows: Axis) -> Iterator[Block]:
    """Cut x (B, F, C, H, W) into blocks, whole pictures where they are small and runs of equal bands where not."""
    batch, frames, channels, _, width = x.shape
    # Large enough that threads wait for each other rarely, small enough for the CPU's cache; elsewhere few launches.
    elements = 2**20 if x.device.type == "cpu" else 2**24
    # A float32 work tensor then takes at most half the bytes of x. Memory not touched before costs more than a launch.
    elements = min(elements, max(x.numel() * x.element_size() // 8, 2**14))
    heights = [band.stop - band.start for band in rows.bands]
    for height, equal in groupby(range(len(heights)), key=heights.__getitem__):
        run = list(equal)
        room = elements // (channels * height * width)  # bands that fit
        pieces = product(
            _split(0, batch, room // (len(run) * frames)),
            _split(0, frames, room // len(run)),
            _split(run[0], run[-1] + 1, room),
        )
        for samples, pictures, bands in pieces:
            top = rows.bands[bands.start].start
            yield Block(samples, pictures, bands, slice(top, rows.bands[bands.stop - 1].stop), height)


def _axis(length: int, tile: int, stride: int, even: bool = False) -> Axis:
    """Bands are one unit high if `even`; else they may be higher where only tiles lie that are spaced evenly."""
    tile = min(tile, length)
    starts = (*range(0, length - tile, stride), length - tile)
    unit = gcd(*starts, tile)
    spaced = starts[-2] if len(starts) > 1 and not even else 0  # where the one before the last starts
    cuts = (*range(0, spaced, gcd(stride, tile)), *range(spaced, length, unit), length)
    bands = (Band(a, b, range(bisect_right(starts, a - tile), bisect_right(starts, a))) for a, b in pairwise(cuts))
    return Axis(length, tile, stride, starts, unit, tuple(bands))


def _windows(x: Tensor, axis: Axis) -> Tensor:
    """The units of each tile: (..., units) -> (..., tiles, units of a tile), a view if the tiles are evenly spaced."""
    size = axis.tile // axis.unit
    step = axis.starts[1] // axis.unit if len(axis.starts) > 1 else 1
    windows = x.unfold(-1, size, step)
    if windows.shape[-2] == len(axis.starts):
        return windows
    return torch.cat((windows, x[..., None, -size:]), dim=-2)  # the tile that was moved to end at the border


def _merge(mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of the union of equally large parts: those in the last dimension."""
    origin = mean[..., :1]  # measured from here, equal means add up to exactly 0
    offset = mean - origin
    shift = offset.mean(-1, keepdim=True)
    return (shift + origin).squeeze(-1), offset.sub_(shift).square_().add_(variance).mean(-1)


def _split(start: int, stop: int, size: int) -> list[slice]:
    """Equal pieces of start..stop of at most `size` (at least 1)."""
    pieces = -(-(stop - start) // max(size, 1))
    size = -(-(stop - start) // pieces)
    return [slice(a, min(a + size, stop)) for a in range(start, stop, size)]
