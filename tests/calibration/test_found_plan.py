"""A precision plan in the statistics file, in tables, and in what is merged."""

import json
import math
from dataclasses import replace

import pytest

from gimbal.calibration import found_plan
from gimbal.calibration.correctors import found
from gimbal.calibration.found_plan import FoundPlan
from gimbal.core.precision_plan import Candidate, Exemption, PrecisionPlan

EARLY = Exemption(math.inf, 7.5)
LATE = Exemption(7.5, 0.0)
ATTENTION = Exemption(layers=("blocks.0.qkv", "blocks.0.proj"))
FOUND = FoundPlan(
    PrecisionPlan((EARLY, ATTENTION)),
    budget=0.2,
    share=0.19,
    measured=(Candidate(EARLY, 0.3, 0.02), Candidate(LATE, -0.01, 0.01), Candidate(ATTENTION, 0.1, 0.03)),
)


def test_text_and_back():
    assert FoundPlan.from_text(FOUND.to_text()) == FOUND


@pytest.mark.parametrize(
    "changed",
    [
        {"budget": 0},
        {"budget": 2.0},
        {"share": -0.1},
        {"share": None},
        {"plan": []},
        {"plan": [{"sigma_start": 1.0, "sigma_end": 2.0, "layers": None}]},
        {"plan": [{"sigma_start": None, "sigma_end": 0.0, "layers": ["a\x1bb"]}]},
        {"plan": [{"sigma_start": None, "sigma_end": 0.0, "layers": []}]},
        {"plan": [{"sigma_start": None, "sigma_end": 0.0, "layers": ["a" * 500]}]},
        {"measured": [{"gain": 0.1}]},
        {"measured": [{"exemption": FOUND.plan.to_list()[0], "gain": "much", "standard_error": 0.0}]},
        {"measured": 3},
    ],
)
def test_text_that_cannot_be(changed):
    with pytest.raises(ValueError, match=r"(FoundPlan|PrecisionPlan|Exemption).*(calibrate|must fall|pass)"):
        FoundPlan.from_text(json.dumps({**json.loads(FOUND.to_text()), **changed}))


def test_words():
    assert FOUND.describe() == (
        "1 range of steps and 2 layers with unrounded activations, 19 % of the rounded layers' multiply-adds"
    )
    two = replace(FOUND, plan=PrecisionPlan((EARLY, LATE)))
    assert two.describe().startswith("2 ranges of steps with")


def test_table_marks_what_was_chosen():
    rows = {line[:2]: line for line in FOUND.table()[2:5]}
    chosen = [line for line in FOUND.table() if line.startswith("* ") and "chosen" not in line]
    assert len(chosen) == 2 and "-30.0%" in chosen[0] and "the start to sigma 7.5" in chosen[0]
    assert "blocks.0.qkv to blocks.0.proj (2 layers)" in chosen[1]
    assert rows["  "].startswith("     +1.0%")


def test_the_same_plan_merges_and_another_does_not():
    other = replace(FOUND, measured=())
    assert found_plan.merged([FOUND, other]) is FOUND and found_plan.merged([None, None]) is None
    for parts in ([FOUND, None], [FOUND, replace(FOUND, plan=PrecisionPlan((EARLY,)))]):
        with pytest.raises(ValueError, match="precision plans differ"):
            found_plan.merged(parts)


def test_the_correction_plan_is_found_with_a_plan_alone():
    assert "plan" in found(maps=False, layers=False, plan=True)
    assert "plan" not in found(maps=True, layers=True)
