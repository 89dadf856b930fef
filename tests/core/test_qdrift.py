"""Gains against numbers worked out by hand, and at the ends of schedules."""

import math

import pytest
import torch

from gimbal.core.qdrift import cap_gain, euler_gain, gain_from_variance, quadrature_gain


def test_euler_gain_by_hand():
    assert euler_gain(4.0, 3.0, 0.8).item() == pytest.approx(0.1)  # 1 / 8 * 0.8
    assert euler_gain(2.0, 0.0, 0.3).item() == pytest.approx(0.15)  # the last step: V / 2
    assert euler_gain(2.0, 2.0, 0.3).item() == 0.0
    assert euler_gain(0.0, 0.0, 0.3).item() == 0.0


def test_quadrature_gain_by_hand():
    gain = quadrature_gain([3.0, -1.0], [0.5, 2.0], 4.0, 3.0)
    assert gain.item() == pytest.approx((9 * 0.5 + 1 * 2.0) / 7)
    assert gain.dtype == torch.float64


def test_quadrature_gain_of_an_euler_step_is_near_eq_22():
    """|ds| V / (s + s') instead of |ds| V / (2 s): the same for short steps, twice as much in a step to 0."""
    assert quadrature_gain([-1.0], [0.8], 4.0, 3.0).item() == pytest.approx(0.8 / 7)
    assert quadrature_gain([-2.0], [0.3], 2.0, 0.0).item() == pytest.approx(0.3)


def test_channels_are_independent():
    variances = torch.tensor([[0.1, 0.2, 0.0], [0.3, 0.4, 0.5]])
    together = quadrature_gain([1.5, -0.5], variances, 2.0, 1.0)
    apart = [quadrature_gain([1.5, -0.5], variances[:, c], 2.0, 1.0) for c in range(3)]
    assert together.shape == (3,) and torch.equal(together, torch.stack(apart))
    assert torch.equal(euler_gain(2.0, 1.0, variances[0]), variances[0].double() * 0.25)


@pytest.mark.parametrize(("start", "end"), [(math.inf, 3.0), (math.inf, math.inf), (2.0, 2.0), (0.0, 0.0)])
def test_no_gain_at_the_limits(start, end):
    assert quadrature_gain([1.0], [0.5], start, end).item() == 0.0
    assert gain_from_variance(torch.ones(3).double(), start, end).tolist() == [0.0] * 3


def test_no_outputs_no_gain():
    assert quadrature_gain([], torch.zeros(0, 4), 2.0, 1.0).tolist() == [0.0] * 4


def test_numbers_keep_all_their_digits():
    assert euler_gain(1.0, 0.9, 0.1).item() == 0.1 * abs(0.9 - 1.0) / 2.0
    assert quadrature_gain([0.1], [0.1], 1.0, 0.0).item() == pytest.approx(0.001, rel=1e-15)


def test_cap_tells_when_it_hit():
    capped, hit = cap_gain(torch.tensor([0.2, 3.0, -4.0]), 1.0)
    assert capped.tolist() == pytest.approx([0.2, 1.0, -1.0]) and hit
    assert cap_gain(torch.tensor([1.0]), 1.0) == (torch.tensor([1.0]), False)
    assert not cap_gain(torch.tensor([9.0]), math.inf)[1]


@pytest.mark.parametrize("variance", [-0.1, math.nan, math.inf, torch.tensor([0.1, -1e-9])])
def test_variances_that_are_none_are_refused(variance):
    with pytest.raises(ValueError, match=r"euler_gain: variance .* is negative or not finite; calibrate again"):
        euler_gain(2.0, 1.0, variance)
    with pytest.raises(ValueError, match=r"quadrature_gain: variance .* is negative or not finite"):
        quadrature_gain([1.0] * torch.as_tensor(variance).numel(), torch.as_tensor(variance).flatten(), 2.0, 1.0)


def test_other_bad_arguments_are_refused():
    for bad in (-1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match=r"euler_gain: sigma is .*; give a finite noise level"):
            euler_gain(bad, 1.0, 0.1)
        with pytest.raises(ValueError, match=r"euler_gain: sigma_next is"):
            euler_gain(1.0, bad, 0.1)
    with pytest.raises(ValueError, match=r"quadrature_gain: weights \(2,\), variances \(3,\); give \(n,\) weights"):
        quadrature_gain([1.0, 2.0], [0.1, 0.1, 0.1], 2.0, 1.0)
    with pytest.raises(ValueError, match=r"quadrature_gain: weights \[inf\] are not finite"):
        quadrature_gain([math.inf], [0.1], 2.0, 1.0)
    for bad in (-1.0, math.nan):
        with pytest.raises(ValueError, match=r"quadrature_gain: sigma_bar is"):
            quadrature_gain([1.0], [0.1], bad, 1.0)
    for bad in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match=r"cap_gain: cap is .*; give a value above 0"):
            cap_gain(torch.zeros(1), bad)
