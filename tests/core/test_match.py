"""Moment matching's map of a state."""

import pytest
import torch

from gimbal.core.match import MomentMatcher
from gimbal.core.solvers import make_plan, run


@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (1, 3, 2, 4, 5)])
def test_it_is_scale_and_shift_per_channel(shape):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    scale, shift = torch.tensor([0.5, 1.0, 2.0]), torch.tensor([1.0, 0.0, -3.0])
    matching = MomentMatcher([None, (scale.double(), shift.double())])
    assert matching(0, x) is x
    found = matching(1, x)
    assert found.dtype == x.dtype
    for c in range(3):
        torch.testing.assert_close(found[:, c], x[:, c] * scale[c] + shift[c])


def test_a_mask_keeps_the_rest_bit_for_bit():
    x = torch.randn(2, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    mask = torch.zeros(1, 1, 4, 4)
    mask[..., 2:] = 1.0
    found = MomentMatcher([(torch.tensor([2.0]), torch.tensor([1.0]))], mask)(0, x)
    assert torch.equal(found[..., :2], x[..., :2])
    torch.testing.assert_close(found[..., 2:], 2 * x[..., 2:] + 1)


def test_other_channels_are_refused():
    with pytest.raises(ValueError, match="maps of 2 channels, x has 3"):
        MomentMatcher([(torch.ones(2), torch.zeros(2))])(0, torch.zeros(1, 3, 2, 2))


@pytest.mark.parametrize("solver", ["euler", "dpmpp_2m", "heun", "lms"])
def test_a_run_goes_on_from_the_mapped_state(solver):
    """Maps of 1 and 0 change no bit; others are where the next step begins, and the history stays."""
    sigmas = torch.tensor([8.0, 3.0, 1.0, 0.3, 0.0])
    x = 8 * torch.randn(1, 2, 3, 3, generator=torch.Generator().manual_seed(1))
    seen = []

    def denoise(at, sigma):
        seen.append(at.clone())
        return at / (1 + sigma.view(-1, 1, 1, 1) ** 2)

    plan = make_plan(solver, sigmas)
    plain = run(plan, denoise, x)
    steps = [step.stages[0].call for step in plan.steps]
    idle = MomentMatcher([(torch.ones(2), torch.zeros(2))] * 4)
    assert torch.equal(run(plan, denoise, x, after_step=idle), plain)
    seen.clear()
    states = []
    matching = MomentMatcher([(torch.tensor([0.5, 2.0]), torch.tensor([1.0, 0.0]))] * 4)

    def keep(i, state):
        states.append(matching(i, state))
        return states[-1]

    end = run(plan, denoise, x, after_step=keep)
    for i, call in enumerate(steps[1:]):
        assert torch.equal(seen[call], states[i])
    assert torch.equal(end, states[-1]) and not torch.allclose(end, plain)
