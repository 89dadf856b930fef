"""Where tiles lie, and their statistics, against plain loops over tiles and positions."""

from itertools import groupby

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gimbal.core.tiles import Band, as_frames, blocks, tile_grid, tile_means, tile_statistics

LAYOUTS = [
    (13, 9, 4, 2),
    (13, 9, 32, 16),
    (104, 152, 32, 16),
    (90, 160, 32, 16),
    (40, 37, 8, 3),
    (12, 20, 4, 4),
    (7, 5, 3, 1),
]


def tiles_of(grid):
    """Every tile of the grid as ((row, column), (slice, slice))."""
    for i, top in enumerate(grid.rows.starts):
        for j, left in enumerate(grid.columns.starts):
            yield (i, j), (slice(top, top + grid.rows.tile), slice(left, left + grid.columns.tile))


def test_a_grid_by_hand():
    # 22 rows in tiles of 8 every 4: 0-7, 4-11, 8-15, 12-19, 14-21 at the border. 10 columns: 0-7, 2-9.
    grid = tile_grid(22, 10, 8, 4)
    assert grid.rows.starts == (0, 4, 8, 12, 14)
    assert grid.columns.starts == (0, 2)
    assert grid.shape == (5, 2)
    assert grid.rows.unit == grid.columns.unit == 2
    # Bands of 4 rows before the tile at the border makes a difference, of 2 from where its neighbour starts.
    assert grid.rows.bands == (
        Band(0, 4, range(1)),
        Band(4, 8, range(2)),
        Band(8, 12, range(1, 3)),
        Band(12, 14, range(2, 4)),
        Band(14, 16, range(2, 5)),
        Band(16, 18, range(3, 5)),
        Band(18, 20, range(3, 5)),
        Band(20, 22, range(4, 5)),
    )
    assert [(band.start, *band.tiles) for band in grid.columns.bands] == [
        (0, 0),
        (2, 0, 1),
        (4, 0, 1),
        (6, 0, 1),
        (8, 1),
    ]


def test_a_tile_larger_than_the_latent_is_cut():
    grid = tile_grid(13, 64, 32, 16)
    assert (grid.rows.starts, grid.rows.tile) == ((0,), 13)
    assert (grid.columns.starts, grid.columns.tile) == ((0, 16, 32), 32)


@settings(deadline=None)
@given(st.integers(1, 200), st.integers(1, 40), st.data())
def test_every_position_is_covered_and_bands_name_its_tiles(length, tile, data):
    stride = data.draw(st.integers(1, tile))
    grid = tile_grid(length, length, tile, stride)
    for axis in grid:
        covering = [[k for k, s in enumerate(axis.starts) if s <= p < s + axis.tile] for p in range(length)]
        assert all(covering)
        assert axis.starts[-1] + axis.tile == length
        named = [list(band.tiles) for band in axis.bands for _ in range(band.start, band.stop)]
        assert named == covering
        assert not any(edge % axis.unit for edge in (*axis.starts, axis.tile, *(band.stop for band in axis.bands)))
    assert len([*groupby(band.stop - band.start for band in grid.rows.bands)]) <= 2
    assert {band.stop - band.start for band in grid.columns.bands} == {grid.columns.unit}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("shape", [(2, 4, 90, 160), (2, 3, 5, 104, 24), (1, 2, 640, 640), (3, 1, 1, 1)])
def test_blocks_cut_the_latent_into_small_pieces_exactly_once(shape, dtype):
    x = as_frames(torch.zeros(shape, dtype=dtype))
    grid = tile_grid(*shape[-2:], 32, 16)
    pieces = list(blocks(x, grid.rows))
    for block in pieces:
        part = block.of(x)
        part += 1.0
        bands = grid.rows.bands[block.bands]
        assert [band.start for band in bands] == [block.rows.start + i * block.height for i in range(len(bands))]
        assert 4 * part.numel() <= max(x.numel() * x.element_size() // 2, 2**16)
    assert torch.equal(x, torch.ones_like(x))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("offset", "rtol"), [(0.0, 1e-5), (1000.0, 1e-4)])  # at 1000, float32 is 6e-5 apart
def test_statistics_equal_those_of_each_tile(layout, offset, rtol):
    height, width, tile, stride = layout
    x = torch.randn(2, 3, 2, height, width, generator=torch.Generator().manual_seed(0)) + offset
    grid = tile_grid(height, width, tile, stride)
    mean, variance = tile_statistics(as_frames(x), grid)
    assert mean.shape == variance.shape == (2, 2, *grid.shape)
    for (i, j), where in tiles_of(grid):
        values = x.double()[(..., *where)].movedim(2, 1).flatten(2)  # (B, F, values)
        torch.testing.assert_close(mean[..., i, j].double(), values.mean(2), atol=1e-5, rtol=1e-6)
        torch.testing.assert_close(variance[..., i, j].double(), values.var(2, correction=0), atol=0, rtol=rtol)


def test_statistics_of_constant_tiles_are_exact():
    x = torch.full((1, 5, 1, 40, 37), 0.1) + torch.arange(3).repeat_interleave(13)[:37]  # 13 columns of each value
    grid = tile_grid(40, 37, 7, 3)
    mean, variance = tile_statistics(as_frames(x), grid)
    for (i, j), where in tiles_of(grid):
        values = x[(0, 0, 0, *where)].unique()
        assert (variance[0, 0, i, j] == 0) == (len(values) == 1)
        if len(values) == 1:
            assert mean[0, 0, i, j] == values[0]


def test_an_outlier_does_not_cost_the_variance_its_digits():
    x = torch.randn(1, 1, 4, 64, 64, generator=torch.Generator().manual_seed(1))
    x[0, 0, 0, 0, 0] = 1e4  # the very element that the statistics measure from
    _, variance = tile_statistics(x, tile_grid(64, 64, 64, 64))
    assert variance.item() == pytest.approx(x.double().var(correction=0).item(), rel=1e-5)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_means_equal_those_of_each_tile(layout):
    height, width, tile, stride = layout
    x = torch.randn(2, height, width, generator=torch.Generator().manual_seed(2))
    grid = tile_grid(height, width, tile, stride)
    means = tile_means(x, grid)
    assert means.shape == (2, *grid.shape)
    for (i, j), where in tiles_of(grid):
        torch.testing.assert_close(means[:, i, j], x[(..., *where)].mean((1, 2)), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((8, 8, 0, 1), "tile is 0"),
        ((8, 8, 4, 0), "stride is 0"),
        ((8, 8, 4, 5), "stride is 5; use 1 to tile"),
        ((0, 8, 4, 2), "0 x 8"),
    ],
)
def test_bad_layouts_are_refused(arguments, message):
    with pytest.raises(ValueError, match=f"tile_grid: .*{message}"):
        tile_grid(*arguments)


@pytest.mark.parametrize(
    "x", [torch.zeros(4, 8, 8), torch.zeros(1, 4, 8, 8, dtype=torch.int32), torch.zeros(0, 4, 8, 8)]
)
def test_what_is_no_latent_is_refused(x):
    with pytest.raises(ValueError, match="as_frames: x is"):
        as_frames(x)
