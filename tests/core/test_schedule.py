"""Steps of model calls, as samplers make them on schedules of every kind."""

from itertools import pairwise

import pytest

from gimbal.core.schedule import StepCounter

FALLING = [14.0, 5.0, 2.0, 0.5, 0.0]
RESTART = [14.0, 5.0, 1.0, 5.0, 1.0, 0.0]
RISING = [0.0, 0.5, 2.0, 5.0, 14.0]
REPEATED = [5.0, 5.0, 2.0, 2.0, 0.0]
SCHEDULES = [FALLING, RESTART, RISING, REPEATED]


@pytest.mark.parametrize("sigmas", SCHEDULES)
def test_one_call_a_step(sigmas):
    counter = StepCounter(sigmas)
    assert [counter.step(sigma, i) for i, sigma in enumerate(sigmas[:-1])] == [0, 1, 2, 3, 4][: len(sigmas) - 1]


@pytest.mark.parametrize("sigmas", SCHEDULES)
def test_second_stages_between_levels_belong_to_their_step(sigmas):
    counter, found = StepCounter(sigmas), []
    for i, (sigma, end) in enumerate(pairwise(sigmas)):
        found.append(counter.step(sigma, i))
        if sigma != end:
            found.append(counter.step((sigma + end) / 2, i + 1))
    assert sorted(set(found)) == list(range(len(sigmas) - 1)) and found == sorted(found)
    assert sum(a == b for a, b in pairwise(found)) == len(found) - len(sigmas) + 1


def test_a_corrector_at_the_next_level_counts_with_the_next_step():
    counter = StepCounter(FALLING)
    calls = [(14.0, 0), (5.0, 1), (5.0003, 1), (2.0, 2), (2.0, 2), (0.5, 3), (0.5, 3)]
    assert [counter.step(*call) for call in calls] == [0, 1, 1, 2, 2, 3, 3]


@pytest.mark.parametrize("sigmas", [FALLING, RESTART, RISING])
def test_without_callbacks_levels_tell(sigmas):
    counter = StepCounter(sigmas)
    assert [counter.step(sigma, 0) for sigma in sigmas[:-1]] == list(range(len(sigmas) - 1))


def test_calls_beyond_what_the_schedule_says_never_raise():
    assert StepCounter([1.0, 0.0]).step(20.0, 0) == 0  # churn raises sigma above the schedule
    assert StepCounter([1.0, 0.0]).step(0.3, 4) == 3  # adaptive: more steps than the schedule has
    assert StepCounter([]).step(1.0, 0) == 0 and StepCounter([1.0]).step(float("nan"), 2) == 1
    counter = StepCounter(FALLING)
    assert [counter.step(0.0, begun) for begun in (0, 4, 5)] == [0, 3, 4]


def test_left_out_calls_change_nothing():
    counter = StepCounter(RESTART)
    assert [counter.step(5.0, 3), counter.step(1.0, 4)] == [3, 4]
