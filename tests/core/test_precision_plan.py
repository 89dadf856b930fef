"""Plans of unrounded activations: by hand, measured ranges, and the choice under a budget."""

import itertools
import json
import math

import pytest
import torch

from gimbal.core.precision_plan import (
    Candidate,
    Exemption,
    PrecisionPlan,
    choose,
    first_and_last,
    layer_groups,
    parts_within,
    step_ranges,
)

SIGMAS = [1.0, 0.8, 0.6, 0.4, 0.2, 0.0]
CALLS = SIGMAS[:-1]
WORK = {"a": 1, "b": 2, "c": 7}  # multiply-adds in a call


def steps_of(plan):
    return [i for i, sigma in enumerate(CALLS) if plan.unrounded(sigma, WORK)]


@pytest.mark.parametrize(
    "first, last, expected",
    [(0, 0, []), (2, 0, [0, 1]), (0, 1, [4]), (1, 2, [0, 3, 4]), (3, 2, [0, 1, 2, 3, 4]), (9, 9, [0, 1, 2, 3, 4])],
)
def test_first_and_last_steps(first, last, expected):
    plan = first_and_last(SIGMAS, first, last)
    assert steps_of(plan) == expected
    assert plan.share(CALLS, WORK) == pytest.approx(len(expected) / 5)
    assert all(plan.unrounded(CALLS[i], WORK) == {"a", "b", "c"} for i in expected)


def test_the_last_bits_of_a_schedule_move_no_step():
    plan = first_and_last(SIGMAS, 2, 1)
    for wobble in (1 - 1e-6, 1 + 1e-6):
        assert [i for i, sigma in enumerate(CALLS) if plan.unrounded(sigma * wobble, "a")] == [0, 1, 4]


def test_a_plan_serves_other_schedules_by_noise_level():
    plan = first_and_last(SIGMAS, 2, 0)
    finer = torch.linspace(1, 0, 11).tolist()
    assert [i for i, sigma in enumerate(finer[:-1]) if plan.unrounded(sigma, "a")] == [0, 1, 2]  # 1.0, 0.9, 0.8


def test_ranges_cover_every_step_once():
    for size in (1, 2, 3, 5, 7):
        ranges = step_ranges(SIGMAS, size)
        found = [[i for i, sigma in enumerate(CALLS) if each.covers(sigma, "a")] for each in ranges]
        assert found == [list(range(i, min(i + size, 5))) for i in range(0, 5, size)]


@pytest.mark.parametrize("share", [0.1, 0.25, 0.5, 1.0])
def test_groups_of_layers_keep_their_order_and_their_share(share):
    work = {f"layer{i}": cost for i, cost in enumerate([5, 1, 1, 20, 3, 0, 8, 8, 2, 12])}
    groups = layer_groups(work, share)
    names = [name for group in groups for name in group.layers]
    most = share * sum(work.values())
    assert names == [name for name, cost in work.items() if 0 < cost <= most]
    assert all(sum(work[name] for name in group.layers) <= most for group in groups)
    assert all(group.covers(sigma, group.layers[0]) for group in groups for sigma in CALLS)
    for group, following in itertools.pairwise(groups):  # none could have taken the next one's first layer
        assert sum(work[name] for name in (*group.layers, following.layers[0])) > most


@pytest.mark.parametrize(
    "steps, budget, ranges", [(5, 0.1, 0), (5, 0.2, 5), (20, 0.1, 10), (20, 0.05, 20), (40, 0.3, 10)]
)
def test_parts_that_are_measured_fit_the_budget_each(steps, budget, ranges):
    sigmas = [1.0 - i / steps for i in range(steps + 1)]
    work = {f"layer{i}": 1 + i % 4 for i in range(60)}
    parts = parts_within(budget, sigmas, work)
    assert sum(part.layers is None for part in parts) == ranges and len(parts) > ranges
    assert all(PrecisionPlan((part,)).share(sigmas[:-1], work) <= budget + 1e-9 for part in parts)
    assert {name for part in parts for name in part.layers or ()} == set(work)


def test_a_gain_is_the_mean_over_runs():
    found = Candidate.measured(Exemption(), [1.0, 3.0], [2.0, 4.0])
    assert found.gain == pytest.approx(0.375) and found.standard_error == pytest.approx(0.125)
    assert Candidate.measured(Exemption(), [1.0], [4.0]).standard_error == 0.0


def test_levels_at_which_a_plan_acts():
    plan = PrecisionPlan((Exemption(0.9, 0.5), Exemption(0.3, 0.1, ("a",))))
    assert [plan.acts_at(sigma) for sigma in CALLS] == [False, True, True, False, True]


def test_layers_alone():
    plan = PrecisionPlan((Exemption(layers=("b",)), Exemption(sigma_start=0.5)))
    assert plan.unrounded(1.0, WORK) == {"b"} and plan.unrounded(0.2, WORK) == {"a", "b", "c"}
    assert plan.share(CALLS, WORK) == pytest.approx((3 * 2 + 2 * 10) / 50)
    assert PrecisionPlan().unrounded(1.0, WORK) == frozenset() and PrecisionPlan().share(CALLS, WORK) == 0.0


def test_a_plan_survives_json():
    plan = PrecisionPlan((Exemption(layers=("b", "c")), Exemption(0.5, 0.25)))
    assert PrecisionPlan.from_list(json.loads(json.dumps(plan.to_list()))) == plan
    for broken in ([{}], [7], [{"sigma_start": "x", "sigma_end": 0, "layers": None}]):
        with pytest.raises(ValueError):
            PrecisionPlan.from_list(broken)


def test_gain_per_cost_decides():
    candidates = [
        Candidate(Exemption(layers=("c",)), 0.5),  # costs 0.7: rate 0.71
        Candidate(Exemption(layers=("b",)), 0.3),  # 0.2: rate 1.5
        Candidate(Exemption(layers=("a",)), 0.1),  # 0.1: rate 1
    ]
    assert choose(candidates, CALLS, WORK, 0.3).unrounded(1.0, WORK) == {"a", "b"}
    assert choose(candidates, CALLS, WORK, 0.2).unrounded(1.0, WORK) == {"b"}
    assert choose(candidates, CALLS, WORK, 1.0).unrounded(1.0, WORK) == {"a", "b", "c"}
    assert choose(candidates, CALLS, WORK, 0.0) == PrecisionPlan()
    # 0.75 holds c alone, or a and b, whose rates come first; c gains more.
    assert choose(candidates, CALLS, WORK, 0.75).unrounded(1.0, WORK) == {"c"}


def test_what_is_no_gain_beyond_its_error_is_left_out():
    harm, doubtful = Candidate(Exemption(layers=("a",)), -0.2), Candidate(Exemption(layers=("b",)), 0.1, 0.11)
    assert choose([harm, doubtful], CALLS, WORK, 1.0) == PrecisionPlan()


def test_what_overlaps_costs_once():
    early, layer = Exemption(sigma_end=0.5), Exemption(layers=("c",))  # 3 calls; c of all calls
    plan = choose([Candidate(early, 0.9), Candidate(layer, 0.5)], CALLS, WORK, (3 * 10 + 2 * 7) / 50)
    assert plan == PrecisionPlan((early, layer))
    # Its rest alone would exceed a smaller budget.
    assert choose([Candidate(early, 0.9), Candidate(layer, 0.5)], CALLS, WORK, 0.8) == PrecisionPlan((early,))
    again = choose([Candidate(early, 0.9), Candidate(early, 0.9)], CALLS, WORK, 1.0)
    assert again == PrecisionPlan((early,))


@pytest.mark.parametrize("seed", range(20))
def test_it_fits_the_budget_and_reaches_half_of_the_best_choice(seed):
    """Against every subset, for exemptions that do not overlap."""
    generator = torch.Generator().manual_seed(seed)
    work = {str(i): int(w) for i, w in enumerate(torch.randint(1, 30, (8,), generator=generator))}
    gains = torch.rand(8, generator=generator).tolist()
    budget = 0.1 + 0.6 * float(torch.rand((), generator=generator))
    candidates = [Candidate(Exemption(layers=(name,)), gain) for name, gain in zip(work, gains, strict=True)]
    plan = choose(candidates, CALLS, work, budget)
    assert plan.share(CALLS, work) <= budget + 1e-9
    reached = sum(gains[int(name)] for name in plan.unrounded(1.0, work))
    total, best = sum(work.values()), 0.0
    for size in range(9):
        for subset in itertools.combinations(range(8), size):
            if sum(work[str(i)] for i in subset) <= budget * total:
                best = max(best, sum(gains[i] for i in subset))
    assert best / 2 <= reached <= best + 1e-9


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: Exemption(0.2, 0.5), "noise levels must fall"),
        (lambda: Exemption(math.nan, 0.5), "noise levels must fall"),
        (lambda: Exemption(layers=()), "layers is empty"),
        (lambda: first_and_last(SIGMAS, -1, 0), "first -1, last 0 of 5 steps"),
        (lambda: first_and_last([1.0], 0, 0), "of 0 steps"),
        (lambda: step_ranges(SIGMAS, 0), "size 0 of 5 steps"),
        (lambda: choose([], CALLS, WORK, 1.5), "budget is 1.5"),
        (lambda: PrecisionPlan().share([], WORK), "0 calls of 3 layers"),
        (lambda: PrecisionPlan().share(CALLS, {}), "5 calls of 0 layers"),
    ],
)
def test_what_cannot_be_is_refused(make, words):
    with pytest.raises(ValueError, match=words):
        make()
