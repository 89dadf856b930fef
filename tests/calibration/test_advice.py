"""What a trial advises by what the pictures show."""

import json

import pytest

from gimbal.calibration.advice import Advice
from gimbal.calibration.correctors import CORRECTORS
from gimbal.calibration.seen import LEAST, Seen, clearly_more
from gimbal.calibration.trial import Trial
from gimbal.calibration.trial_text import seen_lines, sentence, table

NAMES = {"m5": ("moments", 0.5), "m": ("moments", 1.0), "l": ("layers", 1.0), "lm": ("layers and moments", 1.0)}


def made(runs=2, pictures=3, **candidates):
    """A trial; each candidate is (error, colour, grain, composition), any of them a list by picture."""
    candidates = {"plain": (0.2, 0.1, 0.1, 0.2), **candidates}
    count = runs * pictures

    def row(value):
        return tuple(value) if isinstance(value, list) else (value,) * count

    rows = [tuple(row(each[part]) for each in candidates.values()) for part in range(4)]
    error = tuple(
        tuple(sum(row[run * pictures : (run + 1) * pictures]) / pictures for run in range(runs)) for row in rows[0]
    )
    names = tuple(NAMES.get(name, ("plain", 0.0)) for name in candidates)
    return Trial(names, error, ((0.0001,) * runs,) * len(names), Seen(*rows))


def advised(**candidates):
    found = made(**candidates).advice()
    return found.correction, found.strength


@pytest.mark.parametrize("harmed", range(3))
def test_what_makes_anything_people_see_clearly_worse_is_not_advised(harmed):
    worse = [0.05, 0.05, 0.1]
    worse[harmed] = 0.3
    assert advised(l=(0.05, *worse), m=(0.15, 0.05, 0.1, 0.1)) == ("moments", 1.0)
    assert made(l=(0.05, *worse)).advice() == Advice("", 0.0, 1.0)
    words = sentence(made(l=(0.05, *worse)))
    assert f"layers ({list(LEAST)[harmed]})" in words and "leave this model as it is" in words


def test_less_grain_is_as_bad_as_more():
    assert made(l=(0.05, 0.05, -0.3, 0.1)).advice().correction == ""
    assert made(l=(0.05, 0.05, -0.1, 0.1)).advice().correction == "layers"


def test_harm_within_noise_or_too_small_to_see_is_none():
    noisy = [0.0, 0.3, 0.05, 0.25, 0.02, 0.12]  # mean above plain's 0.1, but not steadily
    assert advised(l=(0.1, noisy, 0.1, 0.2)) == ("layers", 1.0)
    assert advised(l=(0.1, 0.104, 0.1, 0.2)) == ("layers", 1.0)


def test_one_picture_of_one_run_is_judged_without_its_noise():
    assert made(1, 1, l=(0.1, 0.05, 0.1, 0.1)).advice().correction == "layers"
    assert made(1, 1, l=(0.1, 0.15, 0.1, 0.1)).advice().correction == ""


def test_full_strength_wins_over_half_within_noise():
    half, full = [0.1, 0.12, 0.09, 0.1, 0.11, 0.1], [0.11, 0.1, 0.1, 0.11, 0.1, 0.11]
    assert advised(m5=(half, 0.05, 0.1, 0.1), m=(full, 0.05, 0.1, 0.1)) == ("moments", 1.0)
    assert advised(m5=(0.08, 0.05, 0.1, 0.1), m=(0.1, 0.05, 0.1, 0.1)) == ("moments", 0.5), "steadily better"


def test_the_simpler_wins_within_noise():
    both, alone = [0.1, 0.12, 0.09, 0.1, 0.11, 0.1], [0.11, 0.1, 0.1, 0.11, 0.1, 0.11]
    assert advised(lm=(both, 0.05, 0.1, 0.1), l=(alone, 0.05, 0.1, 0.1)) == ("layers", 1.0)
    assert advised(lm=(both, 0.05, 0.1, 0.1), l=(alone, 0.08, 0.1, 0.1)) == ("layers and moments", 1.0), (
        "better colours"
    )
    assert advised(lm=(0.05, 0.05, 0.1, 0.1), l=(0.1, 0.05, 0.1, 0.1)) == ("layers and moments", 1.0)


def test_noise_makes_nothing_equal_that_is_far_apart():
    wild, tame = [0.01, 0.16, 0.02, 0.03, 0.15, 0.02], [0.17, 0.02, 0.15, 0.1, 0.02, 0.15]
    assert advised(lm=(wild, 0.05, 0.1, 0.1), l=(tame, 0.05, 0.1, 0.1)) == ("layers and moments", 1.0)


def test_clearly_more():
    assert clearly_more([2.0], [1.0], 0.5) and not clearly_more([2.0], [1.0], 1.5)
    assert clearly_more([2.0, 2.2], [1.0, 1.0], 0.5) and not clearly_more([1.0, 4.0], [1.0, 1.0], 0.5)


def test_it_survives_a_file_and_an_old_file_has_none():
    found = made(l=(0.1 + 1e-17, 1 / 3, -0.1, 0.1))
    assert Trial.from_text(found.to_text()) == found
    old = {name: value for name, value in json.loads(found.to_text()).items() if name != "seen"}
    back = Trial.from_text(json.dumps(old))
    assert back.seen is None and back.advice().correction == "layers" and not seen_lines(back)
    assert len(table(back)) == 4


@pytest.mark.parametrize(
    "damage",
    [
        lambda seen: seen.pop("grain"),
        lambda seen: seen["grain"].pop(),
        lambda seen: seen["error"][0].pop(),
        lambda seen: seen["colour"][0].__setitem__(0, -1.0),
        lambda seen: seen["composition"][0].__setitem__(0, "x"),
        lambda seen: seen["grain"][0].__setitem__(0, 1e9),
        lambda seen: [
            row.__delitem__(slice(1, None)) for rows in seen.values() for row in rows
        ],  # 1 picture of 2 runs
        lambda seen: [rows.append(rows[0]) for rows in seen.values()],  # a candidate too many
    ],
)
def test_damaged_ones_are_refused(damage):
    parts = json.loads(made(l=(0.1, 0.1, 0.1, 0.1)).to_text())
    damage(parts["seen"])
    with pytest.raises(ValueError, match="calibrate again"):
        Trial.from_text(json.dumps(parts))
    parts["seen"] = 3
    with pytest.raises(ValueError, match="calibrate again"):
        Trial.from_text(json.dumps(parts))


def test_merged_trials_keep_what_all_have_tried_and_what_is_left():
    one = made(m=(0.1, 0.1, 0.1, 0.1), l=(0.11, 0.2, 0.1, 0.1))
    two = made(runs=3, pictures=1, l=(0.12, 0.3, 0.1, 0.1), lm=(0.13, 0.1, 0.1, 0.1))
    found = Trial.merged([one, two], layers=True)
    assert found.candidates == (("plain", 0.0), ("layers", 1.0)), "maps are not merged"
    assert found.error == (one.error[0] + two.error[0], one.error[2] + two.error[1]) and found.runs == 5
    assert found.seen.colour == ((0.1,) * 9, (0.2,) * 6 + (0.3,) * 3)
    assert Trial.merged([one, two], layers=False) is None and Trial.merged([one, None], layers=True) is None
    old = Trial(two.candidates, two.error, two.distance)
    assert Trial.merged([one, old], layers=True).seen is None


def test_it_is_told_in_plain_words():
    found = made(l=(0.05, 0.02, -0.05, [0.2, 0.2, 0.35, 0.2, 0.2, 0.2]))
    assert seen_lines(found) == [
        "+ Colours and contrast: 10 % off, now 2 %",
        "+ Grain: 11 % too much, now 4.9 % too little",
        "= Composition: 20 % off, now 22 %; farther in 1 of 6 pictures",
    ]
    lines = table(found)
    assert "grain" in lines[1] and "+10.52%" in lines[2] and max(map(len, lines)) < 130


def test_every_correction_has_words():
    assert all(kind.words and 0 <= kind.parts <= 3 for kind in CORRECTORS.values())
