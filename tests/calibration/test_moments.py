"""Moments against numpy on the whole data, in any split and order."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gimbal.calibration import accumulators
from gimbal.calibration.moments import JointMoments, StateMoments, match


def pair(shape=(2, 3, 5, 7), seed=0, offset=0.0):
    """eps_hat and a delta with a slope, a mean and noise of its own in each channel."""
    generator = torch.Generator().manual_seed(seed)
    channel = torch.arange(shape[1], dtype=torch.float64).view(-1, *[1] * (len(shape) - 2))
    eps_hat = torch.randn(shape, generator=generator, dtype=torch.float64) * (1 + channel) + offset * (1 + channel)
    noise = torch.randn(shape, generator=generator, dtype=torch.float64)
    return eps_hat, 0.3 * eps_hat - 0.2 * channel + 0.1 * (1 + channel) * noise


def moments_of(*pairs, trim=None):
    moments = JointMoments(pairs[0][0].shape[1])
    for eps_hat, delta in pairs:
        moments.update(eps_hat, delta, trim)
    return moments


def reference(eps_hat, delta):
    """Count, mean (2, C) and sums of squared deviations (3, C) of (B, C, ...) by their definition."""
    values = [np.moveaxis(v.double().numpy(), 1, 0).reshape(v.shape[1], -1) for v in (eps_hat, delta)]
    deviations = [v - v.mean(1, keepdims=True) for v in values]
    products = [(deviations[i] * deviations[j]).sum(1) for i, j in ((0, 0), (0, 1), (1, 1))]
    return values[0].shape[1], np.stack([v.mean(1) for v in values]), np.stack(products)


def assert_is(moments, expected, rtol=1e-12):
    count, mean, m2 = expected
    assert moments.count == count
    spread = np.sqrt(np.maximum(m2[[0, 2]], 0) / count)  # what rounding of a mean is to be compared with
    assert (np.abs(moments.mean.numpy() - mean) <= rtol * (np.abs(mean) + spread)).all()
    size = np.stack([m2[0], np.sqrt(m2[0] * m2[2]), m2[2]])
    assert (np.abs(moments.m2.numpy() - m2) <= rtol * size).all()


def parts_of(moments):
    return moments.count, moments.mean.numpy(), moments.m2.numpy()


@pytest.mark.parametrize("shape", [(2, 3, 5, 7), (1, 1, 1, 1), (3, 4, 2, 13, 9), (7, 2), (1, 16, 33, 31)])
def test_one_update_is_the_definition(shape):
    assert_is(moments_of(pair(shape)), reference(*pair(shape)))


@pytest.mark.parametrize("chunk", [1, 4, 29])
def test_pieces_of_a_large_latent_make_the_whole(chunk, monkeypatch):
    monkeypatch.setattr(accumulators, "CHUNK", chunk)
    assert_is(moments_of(pair()), reference(*pair()))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_any_float_dtype_is_summed_in_float64(dtype):
    eps_hat, delta = (v.to(dtype) for v in pair((4, 3, 40, 40), offset=300.0))
    moments = moments_of((eps_hat, delta))
    assert moments.mean.dtype == moments.m2.dtype == torch.float64
    assert_is(moments, reference(eps_hat, delta))


def test_any_memory_layout():
    eps_hat, delta = pair()
    crossed = [v.transpose(2, 3).contiguous().transpose(2, 3) for v in (eps_hat, delta)]
    assert not crossed[0].is_contiguous()
    assert_is(moments_of(crossed), reference(eps_hat, delta))


def test_offset_far_above_the_spread():
    eps_hat, delta = pair(offset=1e7)
    assert_is(
        moments_of((eps_hat, delta), (eps_hat, delta)), reference(*(torch.cat([v, v]) for v in (eps_hat, delta))), 1e-8
    )


@settings(max_examples=40, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 6), min_size=1, max_size=6),
    order=st.randoms(use_true_random=False),
    offset=st.sampled_from([0.0, 100.0]),
    seed=st.integers(0, 99),
)
def test_merged_in_any_split_and_order_it_is_the_whole(sizes, order, offset, seed):
    eps_hat, delta = pair((sum(sizes), 2, 3, 3), seed, offset)
    parts = [moments_of(each) for each in zip(eps_hat.split(sizes), delta.split(sizes), strict=True)]
    while len(parts) > 1:
        order.shuffle(parts)
        parts.append(parts.pop().merge(parts.pop()))
    assert_is(parts[0], reference(eps_hat, delta))


def test_merging_is_associative_and_changes_neither():
    a, b, c = (moments_of(pair(seed=seed, offset=seed)) for seed in (1, 2, 3))
    before = a.count, a.mean.clone().numpy(), a.m2.clone().numpy()
    assert_is(a.merge(b).merge(c), parts_of(a.merge(b.merge(c))))
    for kept, now in zip(before, parts_of(a), strict=True):
        assert np.array_equal(kept, now)


def test_merging_with_nothing_keeps_every_bit():
    moments, nothing = moments_of(pair()), JointMoments(3)
    for merged in (moments.merge(nothing), nothing.merge(moments)):
        assert merged.count == moments.count
        assert torch.equal(merged.mean, moments.mean) and torch.equal(merged.m2, moments.m2)
        merged.update(*pair(seed=5))
    assert_is(moments, reference(*pair()))


def test_derived_figures_by_hand():
    # eps_hat 0 2 4 6: mean 3, variance 5. delta 1 1 3 3: mean 2, variance 1. Covariance 2.
    # slope 2/5, V = 1 - 4/5. eps -1 1 1 3: mean of squares 3; of delta's 5.
    moments = moments_of((torch.tensor([[0.0, 2, 4, 6]])[:, None], torch.tensor([[1.0, 1, 3, 3]])[:, None]))
    for found, expected in [
        (moments.slope(), 0.4),
        (moments.intercept(), 0.8),
        (moments.conditional_variance(), 0.2),
        (moments.unconditional_variance(), 1.0),
        (moments.error_power(), 5.0),
        (moments.relative_error(), (5 / 3) ** 0.5),
        (moments.noise_share(), 0.04),
    ]:
        assert found.dtype == torch.float64 and found.tolist() == pytest.approx([expected], rel=1e-12)


def test_conditional_variance_is_what_regression_leaves():
    eps_hat, delta = pair((3, 2, 9, 9), offset=5.0)
    moments = moments_of((eps_hat, delta))
    for c in range(2):
        x, y = eps_hat[:, c].flatten().numpy(), delta[:, c].flatten().numpy()
        slope, intercept = np.polyfit(x, y, 1)
        left = y - slope * x - intercept
        assert moments.slope()[c] == pytest.approx(slope, rel=1e-9)
        assert moments.intercept()[c] == pytest.approx(intercept, rel=1e-9)
        assert moments.conditional_variance()[c] == pytest.approx((left**2).mean(), rel=1e-9)


def test_an_error_that_is_a_function_of_the_output_has_no_variance():
    for seed in range(20):  # rounding would make some of them negative
        eps_hat, _ = pair((2, 3, 9, 9), seed)
        moments = moments_of((eps_hat, 0.7 * eps_hat + 1))
        assert (moments.conditional_variance() >= 0).all() and moments.conditional_variance().max() < 1e-13
        assert moments.slope().tolist() == pytest.approx([0.7] * 3)


@pytest.mark.parametrize("value", [0.0, 0.1, -1e6])
def test_a_constant_output_has_no_slope(value, monkeypatch):
    monkeypatch.setattr(accumulators, "CHUNK", 10)
    _, delta = pair()
    constant = torch.full_like(delta, value)
    moments = moments_of((constant, delta), (constant, delta))
    assert moments.m2[:2].eq(0).all() and moments.slope().eq(0).all()
    assert torch.equal(moments.conditional_variance(), moments.unconditional_variance())
    assert moments.pooled().slope().eq(0).all()


def test_relative_error_at_its_ends():
    zero, one = torch.zeros(1, 1, 4), torch.tensor([[[1.0, -1, 2, 0]]])
    assert moments_of((one, zero)).relative_error().item() == 0
    assert moments_of((zero, zero)).relative_error().item() == 0
    assert moments_of((zero, zero)).noise_share().item() == 0
    assert moments_of((one, one)).relative_error().item() == float("inf")


def test_pooled_channels_are_one_population():
    eps_hat, delta = pair((2, 4, 6, 6), offset=3.0)
    pooled = moments_of((eps_hat, delta)).pooled()
    assert pooled.channels == 1
    assert_is(pooled, reference(eps_hat.reshape(8, 1, 6, 6), delta.reshape(8, 1, 6, 6)))
    assert JointMoments(4).pooled().count == 0


def trimmed(eps_hat, delta, trim):
    """Count, mean and sums of each channel's elements within its own limits, standing for all its positions."""
    rows = [np.moveaxis(v.double().numpy(), 1, 0).reshape(v.shape[1], -1) for v in (eps_hat, delta)]
    count, means, sums = rows[0].shape[1], [], []
    for own, error in zip(*rows, strict=True):
        kept = np.abs(error - error.mean()) <= trim * error.std()
        assert kept.any()
        _, mean, m2 = reference(*(torch.from_numpy(v[kept])[:, None] for v in (own, error)))
        means.append(mean[:, 0])
        sums.append(m2[:, 0] * count / kept.sum())
    return count, np.stack(means, 1), np.stack(sums, 1)


@pytest.mark.parametrize("trim", [1.5, 3.0])
@pytest.mark.parametrize("chunk", [50, 2**18])
def test_trimming_leaves_out_single_elements(trim, chunk, monkeypatch):
    monkeypatch.setattr(accumulators, "CHUNK", chunk)
    eps_hat, delta = pair((3, 3, 8, 8))
    delta[1, 2, 4, 4] = 1000.0
    moments = moments_of((eps_hat, delta), trim=trim)
    assert_is(moments, trimmed(eps_hat, delta, trim))
    assert moments.conditional_variance().max() < 1e-2 * moments_of((eps_hat, delta)).conditional_variance().max()
    rest = moments_of((eps_hat[:, :2], delta[:, :2]), trim=trim)  # an outlier in one channel is none in the others
    torch.testing.assert_close(moments.mean[:, :2], rest.mean, rtol=1e-12, atol=1e-12)


def test_trimming_heavy_tails_costs_the_share_of_elements_beyond_it():
    """Student's t of 3 degrees, 16 channels: 1.2 % of elements lie beyond 4 deviations, a sixth of all positions has
    one of them. V is that of the elements left."""
    t = torch.distributions.StudentT(3.0)
    torch.manual_seed(0)
    delta = t.sample((1, 16, 100, 100)).double()
    kept = [np.abs(row - row.mean()) <= 4 * row.std() for row in delta[0].flatten(1).numpy()]
    share = 1 - np.mean(kept)
    assert 0.001 < share < 0.02
    expected = [row[near].var() for row, near in zip(delta[0].flatten(1).numpy(), kept, strict=True)]
    found = moments_of((torch.randn(1, 16, 100, 100).double(), delta), trim=4.0)
    assert found.unconditional_variance().numpy() == pytest.approx(np.array(expected))


def test_trimming_takes_each_update_by_itself():
    near, far = pair(seed=1), tuple(v * 1000 for v in pair(seed=2))
    alone = moments_of(near, trim=2.0).merge(moments_of(far, trim=2.0))
    assert_is(moments_of(near, far, trim=2.0), parts_of(alone))


def test_trimming_a_constant_error_leaves_it_whole():
    eps_hat, _ = pair()
    assert moments_of((eps_hat, torch.full_like(eps_hat, 0.1)), trim=4.0).count == 70


def test_trim_that_leaves_nothing():
    delta = torch.tensor([[[1.0, -1.0]]])
    moments = JointMoments(1)
    with pytest.raises(ValueError, match=r"JointMoments\.update: trim 0\.5 leaves nothing of a channel; raise"):
        moments.update(delta, delta, trim=0.5)
    assert moments.count == 0


@pytest.mark.parametrize("trim", [0.0, -1.0, float("nan"), float("inf")])
def test_trim_must_be_a_width(trim):
    with pytest.raises(ValueError, match=r"JointMoments\.update: trim is .*; pass a positive number"):
        JointMoments(3).update(*pair(), trim=trim)


@pytest.mark.parametrize("trim", [None, 4.0])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("broken", [0, 1])
def test_what_is_not_finite_changes_nothing(broken, value, trim):
    moments = moments_of(pair())
    before = [moments.count, moments.mean.clone(), moments.m2.clone()]
    values = pair(seed=1)
    values[broken][1, 2, 4, 6] = value
    with pytest.raises(ValueError, match=rf"update: {'delta' if broken else 'eps_hat'} holds NaN or infinity"):
        moments.update(*values, trim=trim)
    assert moments.count == before[0]
    assert torch.equal(moments.mean, before[1]) and torch.equal(moments.m2, before[2])


def test_values_whose_squares_overflow():
    huge = torch.tensor([[[1e200, -1e200]]], dtype=torch.float64)
    with pytest.raises(ValueError, match="too large to square"):
        JointMoments(1).update(huge, huge)


@pytest.mark.parametrize("shape", [(2, 3), (2, 3, 5, 7), (1, 3, 2, 4, 4)])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_conditional_mean_is_the_regression_line(shape, dtype):
    moments = moments_of(pair(offset=2.0))
    eps_hat = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    found = moments.mean_conditional(eps_hat)
    assert found.dtype == dtype
    view = (3,) + (1,) * (len(shape) - 2)
    mu_eps_hat, mu_delta = (mean.view(view) for mean in moments.mean)
    expected = mu_delta + moments.slope().view(view) * (eps_hat.double() - mu_eps_hat)
    # The result's rounding, and float32's within the terms, which are below 8.
    tolerance = torch.finfo(dtype).eps * expected.abs() + (1e-6 if dtype != torch.float64 else 1e-14)
    assert ((found.double() - expected).abs() <= tolerance).all()


@pytest.mark.parametrize(
    "figure",
    ["conditional_variance", "unconditional_variance", "slope", "intercept", "relative_error", "noise_share"],
)
def test_no_figures_without_data(figure):
    with pytest.raises(ValueError, match=r"JointMoments\.\w+: count is 0; update"):
        getattr(JointMoments(2), figure)()


@pytest.mark.parametrize(
    ("eps_hat", "delta", "message"),
    [
        (torch.ones(1, 4, 2), torch.ones(1, 4, 2), r"eps_hat has shape \(1, 4, 2\); pass \(B, 3, "),
        (torch.ones(1, 3, 2), torch.ones(3), r"delta has shape \(3,\); pass"),
        (torch.ones(1, 3, 0), torch.ones(1, 3, 0), "eps_hat has shape .* not empty"),
        (torch.ones(1, 3, 2), torch.ones(1, 3, 4), r"have shapes \(1, 3, 2\) and \(1, 3, 4\)"),
        (torch.ones(1, 3, 2), torch.ones(1, 3, 2, dtype=torch.int64), r"delta has dtype torch\.int64; convert"),
    ],
)
def test_tensors_that_do_not_fit(eps_hat, delta, message):
    with pytest.raises(ValueError, match=rf"JointMoments\.update: {message}" if "have" not in message else message):
        JointMoments(3).update(eps_hat, delta)


@pytest.mark.parametrize("channels", [0, -1, 2.0, True])
def test_channels_must_be_a_number_of_them(channels):
    with pytest.raises(ValueError, match=r"JointMoments: channels is .*; pass a whole number"):
        JointMoments(channels)


def test_only_like_merges_with_like():
    for other in (JointMoments(4), StateMoments(3)):
        with pytest.raises(ValueError, match=r"JointMoments\.merge: other is .* this one has 3"):
            moments_of(pair()).merge(other)


def test_restored_it_is_a_copy_in_float64():
    mean, m2 = torch.ones(2, 3), torch.ones(3, 3)
    restored = JointMoments.from_parts(4, mean, m2)
    mean.zero_(), m2.zero_()
    assert restored.mean.dtype == restored.m2.dtype == torch.float64
    assert restored.mean.eq(1).all() and restored.m2.eq(1).all()


def test_restored_from_its_parts_it_goes_on():
    moments = moments_of(pair())
    restored = JointMoments.from_parts(moments.count, moments.mean, moments.m2)
    restored.update(*pair(seed=1))
    assert moments.count == 70
    moments.update(*pair(seed=1))
    assert restored.count == 140 and torch.equal(restored.mean, moments.mean) and torch.equal(restored.m2, moments.m2)


@pytest.mark.parametrize(
    ("count", "mean", "m2"),
    [
        (1, torch.zeros(2, 3), torch.zeros(2, 3)),
        (1, torch.zeros(2, 3), torch.zeros(3, 4)),
        (-1, torch.zeros(2, 3), torch.zeros(3, 3)),
        (1, torch.full((2, 3), torch.nan), torch.zeros(3, 3)),
        (1, torch.zeros(2, 3), torch.full((3, 3), -1.0)),
    ],
)
def test_parts_that_cannot_be(count, mean, m2):
    with pytest.raises(ValueError, match=r"JointMoments\.from_parts: "):
        JointMoments.from_parts(count, mean, m2)


def test_a_negative_covariance_is_a_part_that_can_be():
    m2 = torch.tensor([[2.0], [-1.0], [2.0]])
    assert JointMoments.from_parts(4, torch.zeros(2, 1), m2).slope().item() == -0.5


def states(*xs):
    moments = StateMoments(xs[0].shape[1])
    for x in xs:
        moments.update(x)
    return moments


def test_state_moments_are_the_definition():
    x = pair((5, 3, 4, 4), offset=9.0)[0]
    moments = states(x[:2], x[2:4]).merge(states(x[4:]))
    assert moments.count == 80 and moments.mean.shape == moments.m2.shape == (3,)
    flat = np.moveaxis(x.numpy(), 1, 0).reshape(3, -1)
    assert moments.mean.numpy() == pytest.approx(flat.mean(1), rel=1e-12)
    assert moments.variance().numpy() == pytest.approx(flat.var(1), rel=1e-12)
    restored = StateMoments.from_parts(moments.count, moments.mean, moments.m2)
    assert torch.equal(restored.variance(), moments.variance())


def test_state_moments_refuse_what_is_not_finite():
    moments = states(torch.ones(1, 2, 3))
    with pytest.raises(ValueError, match=r"StateMoments\.update: x holds NaN or infinity"):
        moments.update(torch.tensor([[[1.0], [torch.inf]]]))
    assert moments.count == 3 and moments.mean.tolist() == [1, 1]


def test_matched_states_have_the_same_moments():
    x, y = pair((2, 3, 9, 9), 1, 4.0)[0], pair((2, 3, 9, 9), 2, -2.0)[0] * 1.5
    scale, shift = match(states(x), states(y))
    mapped = states(y * scale.view(3, 1, 1) + shift.view(3, 1, 1))
    assert mapped.mean.numpy() == pytest.approx(states(x).mean.numpy(), rel=1e-9)
    assert mapped.variance().numpy() == pytest.approx(states(x).variance().numpy(), rel=1e-9)


def test_a_constant_state_is_moved_not_scaled():
    wide, constant = torch.tensor([[[1.0, 3.0]]]), torch.tensor([[[5.0, 5.0]]])
    assert [t.item() for t in match(states(wide), states(constant))] == [1, -3]
    assert [t.item() for t in match(states(constant), states(constant))] == [1, 0]
    assert [t.item() for t in match(states(constant), states(wide))] == [0, 5]


def test_states_of_another_latent_do_not_match():
    with pytest.raises(ValueError, match="match: full has 2 channels, quantized 3"):
        match(StateMoments(2), StateMoments(3))
    with pytest.raises(ValueError, match=r"StateMoments\.variance: count is 0"):
        match(StateMoments(2), StateMoments(2))
