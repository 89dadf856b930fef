"""AQClip's overlap-add on an accelerator: all layers of tiles at once, in as few operators as memory allows."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from .corridor import Corridor
from .tiles import Grid, TileLayers, as_cells

# Elements of a work tensor, at least where the latent has as many: 16 MiB, which takes longer to fill than to launch.
WORK = 2**22


def clip_smooth(x: Tensor, grid: Grid, cover: TileLayers, corridor: Corridor, knee: float) -> Tensor:
    """Mean over the tiles at each position of the tiles' clipped values: x (B, F, C, H, W) in float32 to the same."""
    cells = as_cells(x, grid)
    reach, room = corridor.soft_limits(knee)
    tables = torch.stack((reach - corridor.middle, reach + corridor.middle, room)).masked_fill_(
        corridor.inactive, math.inf
    )
    tables = F.pad(tables, (0, 1, 0, 1), value=math.inf)
    tables[0].neg_()  # "no tile", the last row and column, and an inactive tile now reach from -inf to inf
    taken = _sum_of_layers(cells, tables, cover, _smooth)
    return _as_positions(torch.addcmul(cells, taken, cover.share, value=-1.0))


def clip_tanh(x: Tensor, grid: Grid, cover: TileLayers, corridor: Corridor, alpha: float) -> Tensor:
    """The same with tanh."""
    cells = as_cells(x, grid)
    slope = corridor.slope(alpha)
    acts = torch.ones_like(slope)
    tables = torch.stack((slope, slope * -corridor.middle, corridor.half, corridor.middle, acts))
    tables = F.pad(
        tables.masked_fill_(corridor.inactive, 0.0), (0, 1, 0, 1)
    )  # "no tile" and an inactive one add nothing
    middle, acting = _table_sums(tables[3:], cover).mul_(cover.share)
    curved = _sum_of_layers(cells, tables[:3], cover, _tanh)
    # Where only inactive tiles lie, 1 - acting is exactly 1 and x comes back.
    return _as_positions(torch.addcmul(middle, cells, 1.0 - acting).addcmul_(curved, cover.share))


def _smooth(x: Tensor, low: Tensor, high: Tensor, room: Tensor) -> Tensor:
    """What the tiles take from x: of an excess s over the knee remains s / (1 + |s| / r), so s |s| / (r + |s|) is taken."""
    excess = x - x.clamp(low, high)
    size = excess.abs()
    return excess.mul_(size).div_(size.add_(room))


def _tanh(x: Tensor, slope: Tensor, offset: Tensor, gain: Tensor) -> Tensor:
    """Alg. 1 lines 7-8 without the tile's middle."""
    return torch.addcmul(offset, x, slope).tanh_().mul_(gain)


def _as_positions(cells: Tensor) -> Tensor:
    return cells.flatten(5, 6).flatten(3, 4)


def _sum_of_layers(cells: Tensor, tables: Tensor, cover: TileLayers, clip: Callable[..., Tensor]) -> Tensor:
    """Sum of clip(cells, *tables) over the layers of tiles, like cells. tables (n, B, F, rows + 1, columns + 1)."""
    parts = (
        clip(cells, *_against_cells(layers)).sum((0, 1)) for layers in _layers(tables, cover, WORK // cells.numel())
    )
    total = next(parts)
    for part in parts:
        total.add_(part)
    return total


def _table_sums(tables: Tensor, cover: TileLayers) -> Tensor:
    """Sum of the tables themselves, ready to broadcast against cells, (n, B, F, 1, cells, 1, cells, 1)."""
    room = WORK // (tables[..., 0, 0].numel() * cover.share.numel())
    total = torch.stack([layers.sum((1, 2)) for layers in _layers(tables, cover, room)]).sum(0)
    return _against_cells(total)


def _layers(tables: Tensor, cover: TileLayers, room: int) -> Iterator[Tensor]:
    """The tables of at most `room` layers (at least one) together, (n, layers, layers, B, F, cells, cells).

    A layer holds at most one tile at a cell, so all positions of a cell go by one element of each table.
    """
    deep, wide = cover.rows.shape[0], cover.columns.shape[0]
    tables = tables.index_select(4, cover.columns.flatten())
    for rows in cover.rows.split(max(min(room // wide, deep), 1)):
        band = tables.index_select(3, rows.flatten()).unflatten(4, cover.columns.shape).unflatten(3, rows.shape)
        yield from band.permute(0, 3, 5, 1, 2, 4, 6).split(max(min(room, wide), 1), dim=2)


def _against_cells(tables: Tensor) -> Tensor:
    """(..., cells, cells) -> (..., 1, cells, 1, cells, 1), ready to broadcast against (B, F, C, cells, h, cells, w)."""
    return tables.unsqueeze(-3).unsqueeze(-2).unsqueeze(-1)
