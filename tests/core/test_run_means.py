"""Means over runs, their errors, and shrinking by them."""

import math

import pytest
import torch

from gimbal.core.run_means import RunMeans, included, shrunk


def test_means_over_runs_are_the_textbooks_and_merge():
    runs = torch.randn(7, 2, 5, generator=torch.Generator().manual_seed(0)).double() + 1e3
    each = RunMeans((2, 5))
    for run in runs:
        each = each.with_run(run)
    torch.testing.assert_close(each.mean, runs.mean(0), rtol=1e-14, atol=0)
    torch.testing.assert_close(each.standard_error(), runs.std(0) / 7**0.5, rtol=1e-10, atol=0)
    parts = [RunMeans((2, 5)), RunMeans((2, 5))]
    for index, run in enumerate(runs):
        parts[index % 2] = parts[index % 2].with_run(run)
    merged = parts[0].merge(parts[1])
    torch.testing.assert_close(merged.mean, each.mean, rtol=1e-14, atol=0)
    torch.testing.assert_close(merged.m2, each.m2, rtol=1e-10, atol=0)
    assert torch.equal(each.merge(RunMeans((2, 5))).mean, each.mean)
    again = RunMeans.from_parts(each.count, each.mean, each.m2)
    assert torch.equal(again.standard_error(), each.standard_error())


def test_runs_that_cannot_be_are_refused():
    one = RunMeans((2,)).with_run(torch.zeros(2))
    with pytest.raises(ValueError, match="1 runs show no spread"):
        one.standard_error()
    for wrong in (torch.zeros(3), torch.tensor([0.0, math.inf])):
        with pytest.raises(ValueError, match="leave this run out"):
            one.with_run(wrong)
    with pytest.raises(ValueError, match="merge equal shapes"):
        one.merge(RunMeans((3,)))
    with pytest.raises(ValueError, match="cannot be such"):
        RunMeans.from_parts(2, torch.zeros(2), torch.tensor([1.0, -1.0]))


def test_shrinking_by_the_standard_error():
    mean = torch.tensor([2.0, -2.0, 0.5, 0.0, 3.0])
    error = torch.tensor([1.0, 1.0, 1.0, 0.0, 0.0])
    # 2 (1 - 1/4), its negative, less than its error, nothing, certain
    assert torch.equal(shrunk(mean, error), torch.tensor([1.5, -1.5, 0.0, 0.0, 3.0]))


def test_of_pure_noise_a_third_of_the_power_is_left_and_of_a_signal_nearly_all():
    noise = torch.randn(200_000, generator=torch.Generator().manual_seed(0))
    one = torch.ones_like(noise)
    assert float(shrunk(noise, one).square().mean()) == pytest.approx(1 / 3, abs=0.01)
    error = (shrunk(noise + 5.0, one) - 5.0).square().mean()
    assert float(error) < 1.2  # (1 + 1/25)^2 of variance and 1/25 of bias, to first order


def test_included_is_one_step_of_the_textbooks_recurrence():
    values = torch.tensor([3.0, 5.0, 10.0]).double()
    mean, m2 = values[:2].mean(), values[:2].var() * 1
    mean, m2 = included(2, mean, m2, values[2])
    assert float(mean) == 6.0 and float(m2) == 26.0  # 9 + 1 + 16
