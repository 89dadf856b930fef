"""Maps of steps, shared out over other steps."""

from itertools import pairwise

import pytest
import torch

from gimbal.calibration.state_map import StateMap, power


def maps(channels=3, start=10.0, ends=(4.0, 1.0, 0.2, 0.0)):
    generator = torch.Generator().manual_seed(3)
    scale = 0.5 + torch.rand(len(ends), channels, generator=generator)
    return StateMap(start, torch.tensor(ends).double(), scale, torch.randn(len(ends), channels, generator=generator))


def after(pair, x):
    return pair[0] * x + pair[1]


X = torch.tensor([-2.0, 0.3, 5.0]).double()


def test_its_own_steps_give_the_stored_maps():
    found = maps()
    for i, (start, end) in enumerate([(10.0, 4.0), (4.0, 1.0), (1.0, 0.2), (0.2, 0.0)]):
        scale, shift = found.between(start, end)
        torch.testing.assert_close(scale.float(), found.scale[i])
        torch.testing.assert_close(shift.float(), found.shift[i])


def test_a_step_over_several_does_them_in_order():
    found = maps()
    expected = X
    for i in range(4):
        expected = found.scale[i].double() * expected + found.shift[i].double()
    torch.testing.assert_close(after(found.between(10.0, 0.0), X), expected)


@pytest.mark.parametrize("places", [(10.0, 7.0, 2.5, 0.9, 0.05, 0.0), (10.0, 9.99, 4.0, 3.0, 0.0)])
def test_other_steps_over_the_same_range_do_the_same_together(places):
    found, x = maps(), X
    for start, end in pairwise(places):
        x = after(found.between(start, end), x)
    torch.testing.assert_close(x, after(found.between(10.0, 0.0), X))


def test_what_is_not_calibrated_is_left_alone():
    found = maps(ends=(4.0, 1.0))
    for start, end in ((20.0, 10.0), (1.0, 0.0), (0.5, 0.1)):
        scale, shift = found.between(start, end)
        assert torch.equal(scale, torch.ones(3).double()) and not shift.any()
    whole = found.between(10.0, 1.0)
    beyond = found.between(50.0, 0.0)
    assert torch.equal(whole[0], beyond[0]) and torch.equal(whole[1], beyond[1])


def test_strength_is_a_share_of_each_map():
    found = maps()
    scale, shift = found.between(4.0, 1.0, strength=0.0)
    assert torch.equal(scale, torch.ones(3).double()) and not shift.any()
    half = found.between(4.0, 1.0, strength=0.5)
    torch.testing.assert_close(after(half, after(half, X)), after(found.between(4.0, 1.0), X))
    twice = found.between(4.0, 1.0, strength=2.0)
    torch.testing.assert_close(after(twice, X), after(found.between(4.0, 1.0), after(found.between(4.0, 1.0), X)))


@pytest.mark.parametrize("levels", [(1.0, 1.0), (1.0, 2.0), (1.0, -0.1), (float("nan"), 0.0)])
def test_levels_must_fall(levels):
    with pytest.raises(ValueError, match=r"StateMap\.between: from sigma"):
        maps().between(*levels)


@pytest.mark.parametrize("near", [0.0, 1e-12, 9e-6, 1.1e-5, -9e-6, 1e-3])
def test_powers_are_exact_near_one(near):
    """Against repeated halves: a map's square root done twice is the map."""
    scale, shift = torch.tensor([1.0 + near]).double(), torch.tensor([0.7]).double()
    half = power(scale, shift, 0.5)
    torch.testing.assert_close(after(half, after(half, X)), after((scale, shift), X), rtol=1e-12, atol=1e-12)
    third = power(scale, shift, 1 / 3)
    torch.testing.assert_close(
        after(third, after(third, after(third, X))), after((scale, shift), X), rtol=1e-11, atol=0
    )


def test_a_scale_of_zero_has_powers():
    scale, shift = torch.zeros(1).double(), torch.tensor([0.7]).double()
    assert [float(part) for part in power(scale, shift, 0.5)] == [0.0, pytest.approx(0.7)]
    assert [float(part) for part in power(scale, shift, 0.0)] == [1.0, 0.0]
