"""What a trial on held-out runs advises, and how it is told."""

import pytest
import torch

from gimbal.calibration import trial_text
from gimbal.calibration.advice import Advice
from gimbal.calibration.trial import Trial, compared

CANDIDATES = (("plain", 0.0), ("drift", 1.0), ("moments", 0.5), ("moments", 1.0))


def made(*errors, distances=None):
    distances = distances or [(0.0001,) * len(errors[0])] * len(errors)
    return Trial(CANDIDATES[: len(errors)], tuple(errors), tuple(tuple(row) for row in distances))


def test_the_lowest_error_is_advised():
    found = made((0.2, 0.3), (0.21, 0.29), (0.1, 0.2), (0.08, 0.15)).advice()
    assert (found.correction, found.strength) == ("moments", 1.0) and found.error == pytest.approx(0.46)


@pytest.mark.parametrize(
    "errors",
    [
        ((0.2, 0.3), (0.21, 0.31)),
        ((0.2, 0.3), (0.1, 0.31)),  # worse in one run
        ((0.2, 0.3), (0.199, 0.298)),  # hardly better
        ((0.0, 0.0), (0.0, 0.0)),
    ],
)
def test_what_does_not_help_in_every_run_is_not_advised(errors):
    assert made(*errors).advice() == Advice("", 0.0, 1.0)


def test_closer_statistics_are_advised_if_the_error_stays():
    errors = ((0.2, 0.2), (0.201, 0.202))
    far, near, small = [(0.05, 0.06), (0.01, 0.02)], [(0.05, 0.06), (0.045, 0.055)], [(0.005, 0.006), (0.001, 0.002)]
    assert made(*errors, distances=far).advice().correction == "drift"
    assert made(*errors, distances=near).advice().correction == ""
    assert made(*errors, distances=small).advice().correction == "", "there is nothing to mend"
    worse = ((0.2, 0.2), (0.22, 0.23))
    assert made(*worse, distances=far).advice().correction == ""


def test_it_survives_a_file():
    found = made((0.2, 0.3), (0.1 + 1e-17, 1 / 3))
    assert Trial.from_text(found.to_text()) == found


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        "3",
        '{"candidates": [["plain", 0.0]], "error": [[1.0]], "distance": [[-1.0]]}',
        '{"candidates": [["plain", 0.0]], "error": [[1.0]], "distance": [[NaN]]}',
        '{"candidates": [["plain", 0.0]], "error": [[1.0]], "distance": []}',
        '{"candidates": [["plain", 0.0]], "error": [[]], "distance": [[]]}',
        '{"candidates": [["plain"]], "error": [[1.0]], "distance": [[1.0]]}',
        '{"candidates": [["drift", 1.0]], "error": [[1.0]], "distance": [[1.0]]}',
        '{"candidates": [["plain", 0.0]], "error": [["x"]], "distance": [[1.0]]}',
    ],
)
def test_other_texts_are_refused(text):
    with pytest.raises(ValueError, match="calibrate again"):
        Trial.from_text(text)


def test_error_and_distance():
    generator = torch.Generator().manual_seed(0)
    full = torch.randn(2, 3, 8, 8, generator=generator)
    assert compared(full, full) == (0.0, 0.0)
    shifted = full + 0.5
    error, distance = compared(shifted, full)
    variance = sum(float(full[:, c].var(correction=0)) for c in range(3)) / 3
    assert error == pytest.approx(0.25 / variance, rel=1e-4) and distance == pytest.approx(0.25 / variance, rel=1e-4)
    moved = full.flip(0)  # the same statistics, another sample
    error, distance = compared(moved, full)
    assert error > 1 and distance == pytest.approx(0.0, abs=1e-12)
    with pytest.raises(ValueError, match="constant"):
        compared(full, torch.ones_like(full))


def test_it_is_told_with_its_numbers():
    good = made((0.04, 0.04), (0.05, 0.05), (0.03, 0.03), (0.01, 0.01))
    words = trial_text.sentence(good)
    assert "2 held-out runs" in words and "plain 20 %" in words and "Advised: moments at strength 1." in words
    assert "moments at 0.5" in words
    assert "leave this model as it is" in trial_text.sentence(made((0.04,), (0.05,)))
    lines = trial_text.table(good)
    assert len(lines) == 2 + 4 and "0.250 0.250" in lines[-1]
