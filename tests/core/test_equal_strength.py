"""The plain guidance scale of equal strength: the measure of strength, and the search for the scale."""

import math

import pytest
import torch

from gimbal.core.equal_strength import closest, deviation, matching_scale


def saturating(scale):
    """As the demo model's latents grow with guidance: fast, then slowly."""
    return 0.55 + 0.9 * math.log(scale + 0.2)


@pytest.mark.parametrize("strength", [saturating, lambda scale: scale**0.4, lambda scale: 1 + math.sqrt(scale)])
@pytest.mark.parametrize("wanted", [1.3, 2.0, 4.2, 7.0, 11.0])
@pytest.mark.parametrize("start", [1.0, 3.0, 7.0, 12.0])
def test_the_scale_is_found_within_five_runs(wanted, start, strength):
    target = strength(wanted)
    trials = matching_scale(strength, target, start, tolerance=0.005)
    assert len(trials) <= 5
    assert abs(closest(trials, target).strength / target - 1) <= 0.005


def test_the_same_strength_at_the_start_takes_one_run():
    assert [trial.scale for trial in matching_scale(saturating, saturating(7.0), 7.0)] == [7.0]


@pytest.mark.parametrize(("target", "end"), [(saturating(1.0) / 3, 1.0), (saturating(100.0) * 3, 100.0)])
def test_a_strength_out_of_reach_ends_at_the_bound(target, end):
    trials = matching_scale(saturating, target, 7.0, trials=20)
    assert closest(trials, target).scale == end
    assert len(trials) < 12


def test_no_scale_is_tried_twice_where_strength_is_flat():
    trials = matching_scale(lambda scale: 1.0, 1.2, 4.0, trials=9)
    scales = [trial.scale for trial in trials]
    assert len(scales) == len(set(scales)) < 9


def test_deviation_leaves_out_each_channels_mean_and_weighs_samples_and_channels_alike():
    latent = torch.tensor([[[[1.0, 3.0]], [[10.0, 10.0]]], [[[0.0, 8.0]], [[-2.0, 2.0]]]])
    assert deviation(latent) == pytest.approx(math.sqrt((1 + 0 + 16 + 4) / 4))
    video = latent.unsqueeze(2)
    assert deviation(video + 5.0) == pytest.approx(deviation(latent))
    assert deviation(3 * latent) == pytest.approx(3 * deviation(latent))


@pytest.mark.parametrize("latent", [torch.zeros(4, 4), torch.zeros(1, 4, 1, 1), torch.zeros(1, 4, 2, 2).long()])
def test_deviation_refuses_what_is_no_latent(latent):
    with pytest.raises(ValueError, match="two positions"):
        deviation(latent)


@pytest.mark.parametrize("wrong", [{"target": 0.0}, {"start": 0.5}, {"tolerance": 0.0}, {"trials": 0}])
def test_the_search_refuses_values_that_make_no_sense(wrong):
    with pytest.raises(ValueError, match="matching_scale"):
        matching_scale(saturating, **{"target": 1.0, "start": 3.0} | wrong)


def test_a_strength_that_is_not_finite_is_said():
    with pytest.raises(ValueError, match="not finite"):
        matching_scale(lambda scale: math.nan, 1.0, 3.0)
