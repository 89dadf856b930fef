"""Steps of model calls, as samplers make them on schedules of every kind."""

from itertools import pairwise

import pytest

from gimbal.core.schedule import ChosenSteps, StepCounter

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


class Level:
    """A noise level that notes that it is asked for."""

    def __init__(self, value):
        self.value, self.asked = value, 0

    def __call__(self):
        self.asked += 1
        return self.value


def chosen(steps, first=0, last=0):
    return [i < first or i >= steps - last for i in range(steps)]


def held(sigmas, choice, calls):
    """calls: level and callbacks before it. What holds, and in which calls the level was asked for."""
    steps, found, asked = ChosenSteps(sigmas, choice), [], []
    for number, (sigma, begun) in enumerate(calls):
        level = Level(sigma)
        found.append(steps.holds(begun, level))
        asked += [number] * level.asked
    return found, asked


def test_one_call_a_step_asks_in_the_second_call_and_at_the_edges_alone():
    sigmas = [1 - i / 20 for i in range(21)]
    calls = [(sigma, i) for i, sigma in enumerate(sigmas[:-1])]
    assert held(sigmas, chosen(20, first=3), calls) == (chosen(20, first=3), [1, 3])
    assert held(sigmas, chosen(20, first=5, last=2), calls) == (chosen(20, 5, 2), [1, 5, 18])


@pytest.mark.parametrize("choice", [[False] * 4, [True] * 4])
def test_where_all_steps_are_alike_no_level_is_asked_for(choice):
    calls = [(14.0, 0), (7.0, 0), (3.0, 9), (5.0, 1)]
    assert held(FALLING, choice, calls) == (choice, [])


def test_second_calls_lie_in_the_interval_of_their_level():
    midpoint = [(14.0, 0), (9.0, 1), (5.0, 1), (3.0, 2), (2.0, 2), (1.0, 3), (0.5, 3), (0.2, 4)]
    assert held(FALLING, chosen(4, first=1), midpoint)[0] == [True, True] + [False] * 6
    assert held(FALLING, chosen(4, last=1), midpoint)[0] == [False] * 6 + [True, True]
    heun = [(14.0, 0), (5.0, 1), (5.0, 1), (2.0, 2), (2.0, 2), (0.5, 3), (0.5, 3)]
    assert held(FALLING, chosen(4, first=2), heun)[0] == [True] * 3 + [False] * 4


def test_callbacks_that_do_not_count_steps_are_not_believed():
    adaptive = [(14.0, 0), (13.0, 1), (12.0, 2), (11.0, 3), (6.0, 4), (1.0, 5), (0.4, 6)]
    assert held(FALLING, chosen(4, first=1), adaptive)[0] == [True] * 5 + [False] * 2
    never = [(sigma, 0) for sigma in FALLING[:-1]]
    assert held(FALLING, chosen(4, 1, 1), never)[0] == [True, False, False, True]
    first = [(sigma, i + 1) for i, sigma in enumerate(FALLING[:-1])]
    assert held(FALLING, chosen(4, 1, 1), first)[0] == [True, False, False, True]


@pytest.mark.parametrize("sigmas", [RESTART, RISING])
def test_chosen_steps_of_other_schedules_are_those_of_the_counter(sigmas):
    steps = len(sigmas) - 1
    calls = [(sigma, i) for i, sigma in enumerate(sigmas[:-1])]
    assert held(sigmas, chosen(steps, 2, 1), calls) == (chosen(steps, 2, 1), list(range(steps)))


def test_a_level_off_by_rounding_stays_in_its_step():
    calls = [(14.0 * (1 + 1e-7), 0), (5.0 * (1 + 1e-7), 1), (2.0 * (1 - 1e-7), 2), (0.5 * (1 + 1e-7), 3)]
    assert held(FALLING, chosen(4, 1, 1), calls)[0] == [True, False, False, True]


def test_choices_are_one_for_each_step():
    with pytest.raises(ValueError, match="3 choices for 5 levels"):
        ChosenSteps(FALLING, [True, False, True])
