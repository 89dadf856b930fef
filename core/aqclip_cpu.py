"""AQClip's overlap-add on the CPU: block by block of the latent, layer by layer of tiles, nothing written twice."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from .corridor import Corridor
from .tiles import Grid, blocks

_Clip = Callable[[Tensor, Iterator[Tensor], Tensor, Tensor], None]


def clip_smooth(x: Tensor, result: Tensor, grid: Grid, corridor: Corridor, knee: float) -> None:
    """Write the mean over the tiles at each position of the tiles' clipped values to result, both (B, F, C, H, W)."""
    _clip_blocks(x, result, grid, _smooth_tables(corridor, knee), _smooth)


def clip_tanh(x: Tensor, result: Tensor, grid: Grid, corridor: Corridor, alpha: float) -> None:
    """The same with tanh."""
    _clip_blocks(x, result, grid, _tanh_tables(corridor, alpha), _tanh)


def _tanh_tables(corridor: Corridor, alpha: float) -> tuple[Tensor, Tensor]:
    """What _tanh needs to know of each tile, (3, B, F, rows + 1, columns + 1), and of the sum over tiles, (3, ...).

    The last row and column stand for "no tile": like an inactive tile, they must add nothing.
    """
    middle, half = (t.masked_fill(corridor.inactive, 0.0) for t in (corridor.middle, corridor.half))
    acts = (~corridor.inactive).float()
    slope = 2.0 * corridor.slope(alpha)  # tanh(z) = 2 sigmoid(2 z) - 1, and sigmoid is several times faster
    slope = slope.masked_fill(corridor.inactive, 0.0)
    tables = torch.stack((slope, -middle * slope, 2.0 * half))
    sums = torch.stack((torch.ones_like(middle), middle - half, 1.0 - acts))
    return F.pad(tables, (0, 1, 0, 1)), F.pad(sums, (0, 1, 0, 1))


def _smooth_tables(corridor: Corridor, knee: float) -> tuple[Tensor, Tensor]:
    """What _smooth needs to know of each tile, as in _tanh_tables, and of the sum over tiles, (1, ...)."""
    reach, room = corridor.soft_limits(knee)
    columns = ((corridor.middle - reach, -math.inf), (corridor.middle + reach, math.inf), (room, 1.0))
    tables = [F.pad(t.masked_fill(corridor.inactive, nothing), (0, 1, 0, 1), value=nothing) for t, nothing in columns]
    return torch.stack(tables), F.pad(torch.ones_like(room), (0, 1, 0, 1)).unsqueeze(0)


def _clip_blocks(x: Tensor, result: Tensor, grid: Grid, tables: tuple[Tensor, Tensor], clip: _Clip) -> None:
    """Overlap-add (Alg. 1): write the mean over the tiles at each position of the tiles' clipped values to result."""
    bands, columns = (torch.tensor(axis.tiles_of_bands()) for axis in grid)  # (depth, bands)
    each, sums = (t.index_select(4, columns.flatten()).unflatten(4, columns.shape) for t in tables)
    each = each.repeat_interleave(grid.columns.unit, dim=-1)  # (n, B, F, rows + 1, depth, W)
    sums = sums.sum(4).index_select(3, bands.flatten()).unflatten(3, bands.shape).sum(3)  # (n, B, F, bands, bands)
    share = 1.0 / sums[:1]
    sums = torch.cat((share, sums[1:] / sums[:1])).repeat_interleave(grid.columns.unit, dim=-1)  # (n, B, F, bands, W)
    for block in blocks(x, grid.rows):
        layers = _layers(each[:, block.batch, block.frames], bands[:, block.bands])
        means = _against_x(sums[:, block.batch, block.frames, block.bands])
        part, target = block.of(x).float(), block.of(result)
        total = target if target.dtype == torch.float32 else torch.empty_like(part)
        clip(part, layers, means, total)
        if total is not target:
            target.copy_(total)


def _layers(tables: Tensor, bands: Tensor) -> Iterator[Tensor]:
    """Per layer of tiles that do not overlap, the tables (n, b, f, rows + 1, depth, W) at each band: see _against_x."""
    for band in bands:
        yield from map(_against_x, tables.index_select(3, band).unbind(4))


def _against_x(tables: Tensor) -> Tensor:
    """(n, b, f, bands, W) -> (n, b, f, 1, bands, 1, W), ready to broadcast against a block of x."""
    return tables.unsqueeze(3).unsqueeze(5)


def _tanh(x: Tensor, layers: Iterator[Tensor], means: Tensor, total: Tensor) -> None:
    """Alg. 1 lines 7-8 on a block (b, f, C, bands, height, W), written to total."""
    share, floor, kept = means  # kept: share of tiles of one value, where x stays
    part = torch.empty_like(x)
    torch.addcmul(floor, x, kept, out=total)
    for slope, offset, gain in layers:
        torch.addcmul(offset, x, slope, out=part)
        total.addcmul_(part.sigmoid_(), gain * share)


def _smooth(x: Tensor, layers: Iterator[Tensor], means: Tensor, total: Tensor) -> None:
    """x less what the tiles take from it, on a block (b, f, C, bands, height, W), written to total.

    An excess s over the knee becomes s / (1 + |s| / r), so s |s| / (r + |s|) is taken.
    """
    (share,) = means
    excess, size = torch.empty_like(x), torch.empty_like(x)
    total.zero_()
    for low, high, room in layers:
        torch.sub(x, torch.clamp(x, low, high, out=excess), out=excess)
        torch.abs(excess, out=size)
        total.addcdiv_(excess.mul_(size), size.add_(room))
    torch.addcmul(x, total, share, value=-1.0, out=total)
