"""Choosing a calibration's runs by stress, and what a poster's coarsest forms and grain are."""

import json
import math
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from evidence import calibrate, files, formats, halves_sheet, paired_sampler, stress, subjects, subsets

from gimbal.core.solvers import make_plan, run

RESULTS = Path(__file__).resolve().parent.parent / "benchmarks" / "evidence" / "results"
SIGMAS = [1.0, 0.6, 0.3, 0.0]
OFFSETS = torch.tensor([0.1, -0.3, 0.0, 0.2])  # of each run's output


def constant(x, sigma):
    """A model whose velocity is 2 everywhere."""
    return x - float(sigma[0]) * 2.0


def shifted(x, sigma):
    return constant(x, sigma) - float(sigma[0]) * OFFSETS.view(-1, 1, 1, 1)


def test_stress_by_hand():
    """An offset b of the velocity moves the final latent by b, and is b^2 / 2^2 of the output's power at every step."""
    x = torch.randn(4, 2, 3, 3, generator=torch.Generator().manual_seed(0))
    found = stress.measure(make_plan("euler", SIGMAS, path="flow"), constant, shifted, x)
    torch.testing.assert_close(found.deviation, OFFSETS.square(), atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(found.error, OFFSETS.square() / 4, atol=1e-6, rtol=1e-4)


def test_runs_are_taken_in_the_order_of_their_stress():
    found = stress.Stress(torch.tensor([0.2, 0.9, 0.1, 0.5]), torch.tensor([4.0, 1.0, 3.0, 2.0]))
    orders = {name: order(found, 0).tolist() for name, order in subsets.ORDERS.items()}
    assert orders[subsets.MOST] == [1, 3, 0, 2] and orders[subsets.LEAST] == [2, 0, 3, 1]
    assert orders[subsets.ERROR] == [0, 2, 3, 1]
    many = stress.Stress(torch.zeros(20), torch.zeros(20))
    draws = [subsets.ORDERS[subsets.RANDOM](many, seed).tolist() for seed in (0, 0, 1)]
    assert draws[0] == draws[1] != draws[2] and sorted(draws[2]) == list(range(20))


@dataclass(frozen=True)
class Model:
    """What PairedSampler asks of a demo model. network: the velocity's gain."""

    network: float
    path: str = "flow"
    dtype: torch.dtype = torch.float32

    def sigmas(self, scheduler, steps):
        return SIGMAS

    def start(self, noise, sigma):
        return noise

    def output(self, x, sigma, labels, cfg):
        return self.network * x + 0.1 * labels.view(-1, 1, 1, 1)


def sampler():
    form = formats.NumberFormat("double", lambda network: 2 * network)
    return paired_sampler.PairedSampler(
        paired_sampler.Models(Model(0.4)), subjects.SETTINGS["flow"][0], form, samples=3, seed=1
    )


def test_calibrations_are_of_the_chosen_runs_alone():
    whole, chosen = sampler(), torch.tensor([4, 1])
    labels, x = whole.calibration_draw(6)
    few = whole.calibrated_on(chosen, 6)
    for ours, theirs in zip(few.calibration_draw(), (labels[chosen], x[chosen]), strict=True):
        assert torch.equal(ours, theirs)
    assert few.statistics().count.tolist() == [2 * 16 * 16] * 3
    maps, plan = few.maps(), make_plan("euler", SIGMAS, path="flow")
    ours, theirs = (
        run(plan, denoise(gain, labels[chosen]), x[chosen], after_step=after)
        for gain, after in ((0.8, lambda step, state: calibrate.mapped(state, maps[step])), (0.4, None))
    )
    for moment in (torch.mean, torch.std):  # on the runs they were found on, maps give full precision's
        torch.testing.assert_close(moment(ours, (0, 2, 3)), moment(theirs, (0, 2, 3)), atol=1e-4, rtol=1e-4)
    assert not torch.equal(whole.maps()[-1][0], maps[-1][0])
    for ours, theirs in zip(whole.maps()[-1], sampler().maps()[-1], strict=True):
        assert torch.equal(ours, theirs), "the sampler's own calibrations are as they were"


def denoise(gain, labels):
    return lambda x, sigma: x - float(sigma[0]) * Model(gain).output(x, sigma, labels, 1.0)


def wave(cycles, size=32):
    return torch.cos(2 * math.pi * cycles * torch.arange(size) / size).expand(1, size, size)


def test_coarsest_forms_and_grain_are_their_frequencies_alone():
    mean, slow, middle, fine = torch.full((1, 32, 32), 0.5), wave(3), wave(8), wave(14)
    state = mean + slow + middle + fine
    torch.testing.assert_close(halves_sheet.coarse(state), mean + slow, atol=1e-5, rtol=0)
    torch.testing.assert_close(halves_sheet.finest(state), fine, atol=1e-5, rtol=0)  # 14 / 32 cycles, above 0.4


@pytest.mark.parametrize(("values", "place"), [([5.0, 1.0, 3.0], 2), ([4.0, 1.0, 2.0, 3.0], 3)])
def test_the_poster_shown_is_the_median(values, place):
    assert halves_sheet.median(torch.tensor(values)) == place


@pytest.mark.parametrize(
    ("part", "rows", "seeds"),
    [(files.PART, files.rows(files.KIND), files.SEEDS), (subsets.PART, subsets.rows(subsets.KIND), subsets.SEEDS)],
)
def test_every_row_is_stored(part, rows, seeds):
    """So that the report is written without a ComfyUI that reads these files."""
    paths = sorted(RESULTS.glob(f"{part}-seed*.json"))
    assert len(paths) == seeds
    names = [row.name for row in rows]
    for path in paths:
        assert list(json.loads(path.read_text(encoding="utf-8"))["runs"]) == names


def test_a_file_is_measured_as_loaded():
    """In float32, by the ComfyUI that reads it."""
    for path in RESULTS.glob(f"{files.PART}-seed*.json"):
        about = json.loads(path.read_text(encoding="utf-8"))["about"]
        assert about["precision"] == "float32" and tuple(map(int, about["comfyui"].split("."))) >= (0, 33, 0)
