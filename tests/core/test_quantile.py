"""sample_quantiles against order statistics taken from a sort, exact ranks and float64."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gimbal.core import device, quantile
from gimbal.core.quantile import sample_quantiles

# Between them these reach every branch: both ends, wide chunks, narrow chunks, no chunks.
LEVELS = [0.0, 0.0001, 0.001, 0.004, 0.0078, 0.012, 0.02, 0.1, 0.3, 0.5, 0.7, 0.9, 0.98, 0.988, 0.9922, 0.999, 1.0]
# One element, few, and both sides of whole chunks and of the smallest sizes that are chunked (k = 2: 128 and 256).
SIZES = [1, 2, 3, 31, 33, 64, 65, 127, 128, 129, 255, 256, 257, 511, 1000, 4096, 4097, 12345, 65536 + 7]


def reference(values: np.ndarray, level: float) -> tuple[float, float]:
    """The quantile of a 1-D array, and the error float32 interpolation may make: none at a whole rank."""
    ordered = np.sort(values.astype(np.float64))
    rank = Fraction(level) * (len(ordered) - 1)
    below = int(rank)
    weight = float(rank - below)
    a, b = ordered[below], ordered[min(below + 1, len(ordered) - 1)]
    tolerance = 0.0 if weight == 0.0 else 2.0**-22 * max(abs(a), abs(b)) + 2.0**-149
    return a + weight * (b - a), tolerance


def assert_matches_reference(x: torch.Tensor, levels: list[float]) -> None:
    found = sample_quantiles(x, levels)
    assert found.shape == (len(levels), x.shape[0])
    assert found.dtype == torch.float32
    for b, sample in enumerate(x.float().flatten(1).numpy()):
        for level, value in zip(levels, found[:, b].tolist(), strict=True):
            expected, tolerance = reference(sample, level)
            assert abs(value - expected) <= tolerance, (level, value, expected)


def gauss(n: int, generator: torch.Generator) -> torch.Tensor:
    return torch.randn(n, generator=generator)


DISTRIBUTIONS = {
    "gauss": gauss,
    "heavy tails": lambda n, g: gauss(n, g) / gauss(n, g).abs().clamp(min=1e-6),
    "ties": lambda n, g: (gauss(n, g) * 2).round(),
    "two values": lambda n, g: (gauss(n, g) > 2.0).float(),
    "constant": lambda n, g: torch.full((n,), 0.1),
    "ascending": lambda n, g: gauss(n, g).sort().values,
    "descending": lambda n, g: gauss(n, g).sort(descending=True).values,
    "one period a chunk": lambda n, g: torch.arange(n).remainder(64).float(),
    "one outlier a chunk": lambda n, g: gauss(n, g) + 100.0 * (torch.arange(n) % 64 == 0),
    "outliers in one place": lambda n, g: gauss(n, g) + 100.0 * (torch.arange(n) >= n - n // 50),
    "denormals": lambda n, g: gauss(n, g) * 1e-42,
    "huge offset": lambda n, g: gauss(n, g) + 1e6,
    "near the limit": lambda n, g: gauss(n, g).clamp(-3, 3) * 5e37,
}


@pytest.mark.parametrize("name", DISTRIBUTIONS)
@pytest.mark.parametrize("size", SIZES)
def test_every_distribution_and_size(name, size):
    generator = torch.Generator().manual_seed(size)
    assert_matches_reference(torch.stack([DISTRIBUTIONS[name](size, generator) for _ in range(2)]), LEVELS)


@settings(max_examples=80, deadline=None)
@given(
    name=st.sampled_from(sorted(DISTRIBUTIONS)),
    size=st.integers(1, 3000),
    batch=st.integers(1, 5),
    levels=st.lists(st.floats(0, 1) | st.sampled_from(LEVELS), min_size=1, max_size=3),
    seed=st.integers(0, 1000),
)
def test_any_levels(name, size, batch, levels, seed):
    generator = torch.Generator().manual_seed(seed)
    assert_matches_reference(torch.stack([DISTRIBUTIONS[name](size, generator) for _ in range(batch)]), levels)


@settings(max_examples=80, deadline=None)
@given(
    values=st.lists(st.floats(-(2.0**126), 2.0**126, width=32), min_size=1, max_size=12),
    repeat=st.integers(1, 60),
    levels=st.lists(st.floats(0, 1), min_size=1, max_size=4),
)
def test_any_values(values, repeat, levels):
    assert_matches_reference(torch.tensor([values * repeat]), levels)


def test_by_hand():
    x = torch.tensor([[[30.0, 10.0], [20.0, 0.0]], [[5.0, 5.0], [5.0, 5.0]]])
    # Ranks 0, 0.75, 1.5, 3 of [0, 10, 20, 30].
    assert sample_quantiles(x, [0.0, 0.25, 0.5, 1.0]).tolist() == [[0.0, 5.0], [7.5, 5.0], [15.0, 5.0], [30.0, 5.0]]


def test_a_single_level_is_one_row():
    assert sample_quantiles(torch.tensor([[1.0, 3.0], [2.0, 2.0]]), 0.5).tolist() == [[2.0, 2.0]]
    assert sample_quantiles(torch.tensor([[1.0, 3.0]]), 1).tolist() == [[3.0]]


@pytest.mark.parametrize("size", [5, 129, 1025, 65537])
def test_bit_for_bit_torch_quantile_where_its_rank_is_exact(size):
    # Multiples of 1/1024 times these sizes less one have few digits, so float32 holds the rank.
    levels = [k / 1024 for k in (0, 1, 5, 13, 100, 512, 700, 1011, 1019, 1023, 1024)]
    x = torch.randn(3, size, generator=torch.Generator().manual_seed(0))
    assert torch.equal(sample_quantiles(x, levels), torch.quantile(x, torch.tensor(levels), dim=1))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_dtypes(dtype):
    x = (torch.randn(2, 4, 33, 31, generator=torch.Generator().manual_seed(1)) * 3).to(dtype)
    assert_matches_reference(x, LEVELS)


@pytest.mark.parametrize("shape", [(2, 4, 13, 9), (2, 4, 104, 152), (2, 3, 5, 13, 9), (1, 16, 3, 40, 40), (3, 700)])
def test_shapes_and_layouts(shape):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(2))
    assert_matches_reference(x, [0.001, 0.5, 0.999])
    expected = sample_quantiles(x, [0.001, 0.5, 0.999])
    transposed = x.transpose(-1, -2).contiguous().transpose(-1, -2)
    every_other = torch.stack([x, x + 1], -1)[..., 0]
    assert not transposed.is_contiguous() and not every_other.is_contiguous()
    assert torch.equal(sample_quantiles(transposed, [0.001, 0.5, 0.999]), expected)
    assert torch.equal(sample_quantiles(every_other, [0.001, 0.5, 0.999]), expected)
    if x.ndim == 4:
        assert torch.equal(sample_quantiles(x.to(memory_format=torch.channels_last), [0.001, 0.5, 0.999]), expected)


def test_samples_are_independent():
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(5, 4, 31, 33, generator=generator) * torch.tensor([1.0, 1e-3, 1e3, 0.0, 1.0]).view(5, 1, 1, 1)
    x[4, 0, 0, 0] = torch.nan
    together = sample_quantiles(x, LEVELS)
    assert torch.equal(together, torch.cat([sample_quantiles(sample[None], LEVELS) for sample in x], 1))


def test_more_elements_than_torch_quantile_takes():
    n = 2**24 + 43  # prime to the factor below, so x is a permutation of 0 ... n - 1, each rounded to float32
    x = (torch.arange(n) * 7919).remainder_(n).float()[None]
    with pytest.raises(RuntimeError, match="too large"):
        torch.quantile(x, 0.001)
    for level, value in zip([0.001, 0.9991], sample_quantiles(x, [0.001, 0.9991])[:, 0].tolist(), strict=True):
        rank = Fraction(level) * (n - 1)
        a, b = (float(np.float32(int(rank) + i)) for i in (0, 1))
        assert abs(value - (a + float(rank % 1) * (b - a))) <= float(np.spacing(np.float32(a)))


def test_ranks_are_exact_beyond_float32():
    rank = quantile._fixed_point_rank(0.999, 2_000_000_001)
    assert abs(Fraction(rank, 2**30) - Fraction(0.999) * 2_000_000_000) < Fraction(1, 2**29)
    assert quantile._fixed_point_rank(1.0, 2**31 - 1) == (2**31 - 2) * 2**30
    counts = torch.tensor([1, 2, 4_838_400, 2**31 - 1])
    for level in (0.0, 0.001, 1 / 3, 0.999, 1.0):
        assert quantile._fixed_point_rank(level, counts).tolist() == [
            quantile._fixed_point_rank(level, count) for count in counts.tolist()
        ]


@pytest.mark.parametrize("size", [7, 700, 65536])
@pytest.mark.parametrize("share", [0.0005, 0.3, 0.9])
def test_values_that_are_not_finite_take_no_part(size, share):
    generator = torch.Generator().manual_seed(size)
    x = torch.randn(3, size, generator=generator)
    for value in (torch.nan, torch.inf, -torch.inf):
        x[:2].masked_fill_(torch.rand(2, size, generator=generator) < share / 3, value)
    x[0, 0] = torch.nan
    x[1, 1] = -torch.inf
    found = sample_quantiles(x, LEVELS)
    for b, sample in enumerate(x):
        assert torch.equal(found[:, b : b + 1], sample_quantiles(sample[sample.isfinite()][None], LEVELS))


def test_a_sample_without_finite_elements_is_nan_alone():
    x = torch.tensor([[torch.nan, torch.inf], [1.0, 2.0], [-torch.inf, -torch.inf]])
    found = sample_quantiles(x, [0.0, 0.25, 1.0])
    assert found[:, 1].tolist() == [1.0, 1.25, 2.0]
    assert found[:, [0, 2]].isnan().all()


def test_double_beyond_float32_counts_as_infinite():
    x = torch.tensor([[1e300, 1.0, 2.0, -1e300]], dtype=torch.float64)
    assert sample_quantiles(x, [0.0, 1.0]).tolist() == [[1.0], [2.0]]


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_the_path_for_accelerators_gives_the_same_bits(name, monkeypatch):
    generator = torch.Generator().manual_seed(4)
    x = torch.stack([DISTRIBUTIONS[name](12345, generator) for _ in range(3)])
    expected = sample_quantiles(x, LEVELS), sample_quantiles(x, [0.001, 0.999])
    monkeypatch.setattr(device, "on_host", lambda x: False)
    assert torch.equal(sample_quantiles(x, LEVELS), expected[0])
    assert torch.equal(sample_quantiles(x, [0.001, 0.999]), expected[1])


@pytest.mark.parametrize("shape", [(1, 4, 64, 64), (2, 4, 9, 13), (2, 3, 5, 37, 41)])
def test_nothing_waits_for_an_accelerator(shape):
    # The meta device has no values: whatever needs one, .item() or a mask as an index, raises.
    x = torch.empty(shape, device="meta", dtype=torch.float16)
    assert sample_quantiles(x, LEVELS).shape == (len(LEVELS), shape[0])


def test_the_argument_is_left_alone():
    x = torch.randn(2, 4, 40, 40, generator=torch.Generator().manual_seed(5))
    x[0, 0, 0, 0] = torch.nan
    before = x.clone()
    sample_quantiles(x, LEVELS)
    assert torch.equal(x.nan_to_num(7.0), before.nan_to_num(7.0))


def test_an_empty_batch_has_no_quantiles():
    assert sample_quantiles(torch.empty(0, 4, 8, 8), [0.1, 0.9]).shape == (2, 0)


@pytest.mark.parametrize("q", [[], [0.5, 1.5], -0.1, float("nan")])
def test_levels_out_of_range(q):
    with pytest.raises(ValueError, match=r"sample_quantiles: q is .*between 0 and 1"):
        sample_quantiles(torch.ones(1, 2), q)


@pytest.mark.parametrize("shape", [(), (4,), (2, 0), (1, 4, 0, 8)])
def test_shapes_without_samples(shape):
    with pytest.raises(ValueError, match=r"sample_quantiles: x has shape .*pass \(B, \.\.\.\)"):
        sample_quantiles(torch.ones(shape), 0.5)


def test_whole_numbers_are_refused():
    with pytest.raises(ValueError, match=r"sample_quantiles: x has dtype torch\.int64; convert"):
        sample_quantiles(torch.ones(1, 2, dtype=torch.int64), 0.5)
