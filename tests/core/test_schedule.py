import pytest

from gimbal.core.schedule import step_index

SIGMAS = [14.0, 5.0, 2.0, 0.5, 0.0]


@pytest.mark.parametrize(
    ("sigma", "step"),
    [
        (14.0, 0),
        (20.0, 0),  # churn raises sigma above the schedule
        (13.9, 0),
        (5.0, 1),
        (5.0003, 1),  # rounding
        (4.9, 1),
        (2.0, 2),
        (0.5, 3),
        (0.1, 3),
        (0.0, 3),
    ],
)
def test_a_level_belongs_to_the_step_that_starts_at_or_above_it(sigma, step):
    assert step_index(sigma, SIGMAS) == step


def test_one_step():
    assert step_index(1.0, [1.0, 0.0]) == 0


@pytest.mark.parametrize("sigmas", [[], [1.0], [1.0, 2.0]])
def test_a_schedule_that_is_none_is_refused(sigmas):
    with pytest.raises(ValueError, match="step_index: sigmas must be at least two non-increasing values"):
        step_index(1.0, sigmas)
