"""What a report says, and what a calibration gathers and keeps to say it."""

import dataclasses
import functools
import math

import numpy as np
import pytest
import torch

from gimbal.calibration import plots, report
from gimbal.calibration.collect import RunMoments, same_levels
from gimbal.calibration.fingerprint import digest, stored, weights_digest
from gimbal.calibration.moments import JointMoments
from gimbal.calibration.provenance import Provenance
from gimbal.calibration.residual import BINS, Residual
from gimbal.calibration.statistics import QDriftStatistics
from gimbal.calibration.trajectories import ModelCall, Trajectory, TrajectoryStore
from gimbal.calibration.trajectory_header import read_header, write_header
from gimbal.calibration.trial import Trial
from gimbal.calibration.verdict import Outcome, verdict
from gimbal.core.plan import make_plan

LEVELS = [4.0, 2.0, 1.0]


def made(variances, means=(0.0, 0.0), count=100, channels=2, levels=LEVELS, **about):
    """Statistics of runs whose error has these variances, is independent of eps_hat (variance 1) and has this mean."""
    runs = []
    for variance in variances:
        m2 = torch.tensor([[count], [0.0], [count * variance]], dtype=torch.float64).expand(3, channels)
        mean = torch.tensor(means, dtype=torch.float64)[:, None].expand(2, channels)
        runs.append([JointMoments.from_parts(count, mean, m2) for _ in levels])
    seeds = tuple(range(len(variances)))
    settings = {
        "path": "ve",
        "latent_channels": channels,
        "latent_format": "SD15",
        "cfg": 3.0,
        "steps": len(levels),
        "runs": len(seeds),
        "seeds": seeds,
        "quantized_model": "q$1.safetensors",
    }
    return QDriftStatistics.from_runs(levels, runs, Provenance(**{**settings, **about}))


def test_figures_by_hand():
    shown = report.figures(made([0.1]))
    # c = |dsigma|/(2 sigma) V: 4 to 2, 2 to 1, and 1 to 0.
    torch.testing.assert_close(shown.gain[:, 0], torch.tensor([0.025, 0.025, 0.05], dtype=torch.float64))
    # eps = eps_hat - delta has variance 1 + 0.1; the error is sqrt(0.1 / 1.1) of it.
    torch.testing.assert_close(shown.error, torch.full((3,), math.sqrt(0.1 / 1.1), dtype=torch.float64))
    torch.testing.assert_close(shown.error_db, torch.full((3,), 10 * math.log10(11), dtype=torch.float64))
    assert torch.equal(shown.noise_db, shown.error_db) and torch.equal(shown.noise_share, torch.ones(3).double())
    systematic = report.figures(made([0.1], means=(0.0, 0.3)))  # adds 0.09 to the error's power
    torch.testing.assert_close(systematic.noise_share, torch.full((3,), 0.1 / 0.19, dtype=torch.float64))
    assert (systematic.error_db < systematic.noise_db).all()


def test_spread_over_the_runs_by_hand():
    variances = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7]
    spread = {k: (float(low[2]), float(high[2])) for k, low, high in report.figures(made(variances)).spread}
    # At the last level c = V/2: of any 5 the lowest are .1 to .5, the highest .3 to .7.
    assert spread[1] == pytest.approx((0.05, 0.35))
    assert spread[5] == pytest.approx((0.15, 0.25))
    assert spread[7] == pytest.approx((0.2, 0.2))
    assert [k for k, _, _ in report.figures(made([0.1, 0.2])).spread] == [1, 2]
    assert "any 5 would give c within 25 %" in report.stability(made(variances))
    assert report.stability(made([0.1])).startswith("One run")


def test_spread_is_over_any_runs_not_over_neighbours():
    """Every third run is a bad one: five neighbours always hold one or two, any five hold none to four of four."""
    variances = [0.4 if i % 3 == 0 else 0.0 for i in range(12)]
    spread = {k: (float(low[2]), float(high[2])) for k, low, high in report.figures(made(variances)).spread}
    assert spread[5] == pytest.approx((0.0, 0.5 * 0.4 * 4 / 5))
    again = report.figures(made(variances)).spread
    assert all(
        torch.equal(one[1], other[1]) for one, other in zip(report.figures(made(variances)).spread, again, strict=True)
    )


@pytest.mark.parametrize(
    ("about", "equation"),
    [
        ({"solver": "euler", "path": "flow"}, "Eq. 37"),
        ({"solver": "dpmpp_2m"}, "Eq. 36 accumulated"),
        ({"solver": "euler"}, "Eq. 22"),
    ],
)
def test_gains_are_those_that_sampling_applies(about, equation):
    """The corrected sampler's own plan, on the calibrated schedule, with the nodes' default rule."""
    levels = [1.0, 0.8, 0.5, 0.2]
    statistics = made([0.1], levels=levels, **about)
    plan = make_plan(
        about["solver"],
        [*levels, 0.0],
        path=statistics.provenance.path,
        variance=lambda sigma: statistics.variance(sigma),
    )
    shown = report.figures(statistics)
    torch.testing.assert_close(shown.gain, plan.gains, rtol=1e-6, atol=1e-12)
    assert plan.equation == equation and f", {equation}, " in report.text(statistics)
    if about.get("path") == "flow":  # 0.8 to 0.5, by hand: w^2 (1 - sigma)^2 V / (4^2 - 1^2), w = 4 - 1
        assert float(shown.gain[1, 0]) == pytest.approx(9 * 0.04 * 0.1 / 15)
        assert float(shown.gain[0, 0]) == 0.0


def test_a_sampler_of_comfyui_alone_is_shown_as_euler_and_said():
    text = report.text(made([0.1], solver="res_multistep"))
    assert "euler on path ve, Eq. 22" in text and "res_multistep's own follow" in text


def test_text_has_every_step_channel_and_the_verdict():
    statistics = made([0.1, 0.2], channels=3)
    text = report.text(statistics)
    assert text.count("\n   3 ") == 2 and "c[2]" in text and "Gain c by rule auto: euler on path ve, Eq. 22" in text
    assert text.endswith(statistics.verdict() + "\n") and text.count(statistics.verdict()) == 1
    assert "c[0]" not in report.text(made([0.1], channels=17))
    assert "cannot be read from a file" in text


@pytest.mark.parametrize("variances", [[0.0], [0.1], [0.1, 0.2, 0.3, 0.2, 0.1, 0.2]])
@pytest.mark.parametrize(("channels", "levels"), [(1, [1.0]), (128, LEVELS), (4, [*range(100, 0, -1)])])
def test_pictures_of_any_size(variances, channels, levels):
    pytest.importorskip("matplotlib")
    statistics = made(variances, channels=channels, levels=[float(level) for level in levels])
    residuals = [Residual.empty(channels) for _ in levels]
    for picture in (plots.picture(statistics), plots.picture(statistics, residuals)):
        assert picture.dtype == np.uint8 and picture.shape == (840, 1360, 3) and picture.std() > 10
    assert report.text(statistics, residuals)


def pair(seed, channels=3, batch=2):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(batch, channels, 5, 7, generator=generator) for _ in range(3)]


def test_a_run_gathers_by_level():
    run = RunMoments(3)
    for seed, sigma in enumerate([2.0, 1.0, 1.0 + 1e-8, 1.5, 0.0]):
        run.add(sigma, *pair(seed))
    assert run.levels == [2.0, 1.5, 1.0]
    assert [moments.count for moments in run.moments] == [70, 70, 140]
    x, denoised, denoised_hat = (t.double() for t in pair(3))
    expected = JointMoments(3)
    expected.update((x - denoised_hat) / 1.5, (denoised - denoised_hat) / 1.5)
    assert torch.equal(run.moments[1].m2, expected.m2)
    first, second = pair(1), pair(2)
    whole = RunMoments(3)
    whole.add(1.0, *(torch.cat(both) for both in zip(first, second, strict=True)))
    torch.testing.assert_close(run.moments[2].m2, whole.moments[0].m2, rtol=1e-6, atol=1e-6)
    other = RunMoments(3)
    other.add(2.0, *pair(1))
    assert not same_levels([run, other]) and same_levels([run, run])


def test_a_run_comes_back_bit_for_bit(tmp_path):
    run = RunMoments(3, trim=4.0)
    for seed, sigma in enumerate([2.0, 1.0]):
        run.add(sigma, *pair(seed))
        run.add_state(pair(seed)[0])
    path = tmp_path / "deep" / "run.partial"
    run.save(path)
    back = RunMoments.load(path, 3, 4.0)
    assert back.levels == run.levels
    for ours, theirs in zip(run.moments, back.moments, strict=True):
        assert torch.equal(ours.m2, theirs.m2) and torch.equal(ours.mean, theirs.mean) and ours.count == theirs.count
    for ours, theirs in zip(run.residuals, back.residuals, strict=True):
        assert torch.equal(ours.fourth, theirs.fourth) and torch.equal(ours.histogram, theirs.histogram)
    for ours, theirs in zip(run.states, back.states, strict=True):
        assert torch.equal(ours.m2, theirs.m2) and torch.equal(ours.mean, theirs.mean) and ours.count == theirs.count
    assert len(back.states) == 2
    assert [file.name for file in path.parent.iterdir()] == ["run.partial"]
    with pytest.raises(ValueError, match="should have 4 where it has 3"):
        RunMoments.load(path, 4)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ValueError, match=r"cannot be used: .* made again; .* delete the folder"):
        RunMoments.load(path, 3)
    with pytest.raises(FileNotFoundError):
        RunMoments.load(tmp_path / "none", 3)


@pytest.mark.parametrize(
    ("noise", "kurtosis"),
    [(torch.randn, 0.0), (lambda *size, generator: torch.rand(*size, generator=generator) - 0.5, -1.2)],
)
def test_the_shape_of_the_error(noise, kurtosis):
    generator = torch.Generator().manual_seed(0)
    eps_hat = torch.randn(4, 2, 64, 64, generator=generator).double()
    delta = 0.1 * noise(4, 2, 64, 64, generator=generator).double() + 0.3 * eps_hat + 0.7
    moments = JointMoments(2)
    moments.update(eps_hat, delta)
    found = Residual.of(eps_hat, delta, moments)
    assert found.excess_kurtosis() == pytest.approx(kurtosis, abs=0.1)
    assert (found + found).excess_kurtosis() == pytest.approx(found.excess_kurtosis())
    assert int(found.histogram.sum()) == int(found.count.sum()) == 2 * 4 * 64 * 64
    assert abs(float((found.histogram * torch.arange(BINS)).sum()) / int(found.count.sum()) - (BINS - 1) / 2) < 0.2


def test_an_error_without_a_random_part_has_no_shape():
    eps_hat = torch.randn(1, 2, 8, 8, generator=torch.Generator().manual_seed(0)).double()
    for delta in (torch.zeros_like(eps_hat), 0.5 * eps_hat):
        moments = JointMoments(2)
        moments.update(eps_hat, delta)
        assert math.isnan(Residual.of(eps_hat, delta, moments).excess_kurtosis())
    assert "no random part" in report.shape_sentence([Residual.empty(2)])


def trajectory(n=3):
    x = torch.randn(2, 3, 4, 4)
    calls = [ModelCall(torch.randn_like(x), torch.full((2,), 1.0 / (i + 1)), torch.randn_like(x)) for i in range(n)]
    return Trajectory(calls, x)


def test_trajectories_come_back_as_they_were(tmp_path):
    store = TrajectoryStore(tmp_path / "t")
    given = trajectory()
    assert not store.holds("a")
    store.put("a", given)
    assert store.holds("a") and not store.holds("b") and store.length("a") == 3
    assert torch.equal(store.final("a"), given.final)
    for one, other in zip(given.calls, store.calls("a"), strict=True):
        assert all(torch.equal(getattr(one, name), getattr(other, name)) for name in ("x", "sigma", "denoised"))
    store.clear()
    assert not store.holds("a")


def test_broken_trajectories_are_refused_in_words(tmp_path):
    store = TrajectoryStore(tmp_path)
    store.put("a", trajectory())
    path = tmp_path / "a.safetensors"
    whole = path.read_bytes()
    for data in (
        whole[:-10],
        b"",
        b"\xff" * 100,
        whole.replace(b"gimbal.qdrift.trajectory/2", b"gimbal.qdrift.trajectory/9"),
    ):
        path.write_bytes(data)
        with pytest.raises(ValueError, match=r"a\.safetensors.*record"):
            list(store.calls("a"))
    (tmp_path / ".a.safetensors.x.tmp").write_bytes(b"")
    store.tidy()
    assert [file.name for file in tmp_path.iterdir()] == ["a.safetensors"]


def test_header_round_trip(tmp_path):
    traits = {"path": "flow", "kind": "CONST", "channels": 2, "latent_format": "SD3", "sigma_min": 0.0, "sigma_max": 1}
    settings = {
        "key": "k",
        "traits": traits,
        "cfg": 3.5,
        "sampler": "euler",
        "scheduler": "simple",
        "batch_index": None,
        "seeds": [1, 2],
        "held_out": 0,
        "prompts": ["a", "b"],
        "full_model": "m",
        "full_digest": "d",
    }
    latent = torch.zeros(1, 2, 4, 4)
    write_header(tmp_path, settings, {"latent": latent, "sigmas": torch.tensor([1.0, 0.0])})
    found, tensors = read_header(tmp_path)
    assert found == settings and tensors["sigmas"].tolist() == [1.0, 0.0] and torch.equal(tensors["latent"], latent)
    with pytest.raises(ValueError, match="missing"):
        read_header(tmp_path / "none")


class Node:
    def __init__(self, value):
        self.value = value
        self.me = self


def test_digests_tell_values_not_places():
    def closure(value):
        return lambda: value

    def values(x):
        return [
            x,
            [x],
            {"b": 1, "a": x},
            {x, 7},
            torch.tensor([x]),
            closure(x),
            Node(x),
            Node(x).__init__,
            functools.partial(max, x),
            {"k": [Node({"deep": torch.tensor([1.0, x])})]},
        ]

    ones, again, others = ([digest(value) for value in values(x)] for x in (1.5, 1.5, 2.5))
    assert ones == again and len(set(ones)) == len(ones)
    assert not set(ones) & set(others)
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1}) != digest({"a": 2, "b": 1})
    assert digest([1, [2]]) != digest([[1], 2]) and digest("1") != digest(1) and digest(1, 2) != digest([1, 2])
    assert digest(torch.ones(2)) != digest(torch.ones(2).half()) != digest(torch.ones(1, 2).half())
    assert digest(torch.nn.Linear(2, 2)) == digest(torch.nn.Linear(3, 3)), "networks count by their type"
    assert digest(Node(1), opaque=(Node,)) == digest(Node(2), opaque=(Node,))


def test_weights_digest():
    weights = {"a": torch.randn(100, 70), "b": torch.ones(3).to(torch.float8_e4m3fn), "c": torch.zeros(0)}
    same = {name: weights[name].clone() for name in reversed(weights)}
    assert weights_digest(weights) == weights_digest(same)
    for name, value in (("a", weights["a"] + 1e-6), ("a", weights["a"].view(70, 100)), ("b", torch.ones(3))):
        assert weights_digest({**weights, name: value}) != weights_digest(weights)
    assert weights_digest({"d": weights["a"]}) != weights_digest({"a": weights["a"]})
    assert weights_digest({"m": torch.empty(4, device="meta")}) == weights_digest({"m": torch.empty(4, device="meta")})


def test_quantized_tensors_count_by_what_they_store():
    class Quantized(torch.Tensor):
        @staticmethod
        def __new__(cls, data, scale):
            return torch.Tensor._make_wrapper_subclass(cls, data.shape, dtype=torch.float32)

        def __init__(self, data, scale):
            self.data_part, self.scale = data, scale

        def __tensor_flatten__(self):
            return ["data_part", "scale"], None

        @classmethod
        def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
            raise AssertionError("only its parts are to be read")

    one = Quantized(torch.ones(4, dtype=torch.int8), torch.tensor(0.5))
    assert [tuple(values.shape) for _, values in stored(one)] == [(4,), ()]
    other = Quantized(torch.ones(4, dtype=torch.int8), torch.tensor(0.25))
    assert weights_digest({"w": one}) != weights_digest({"w": other})
    assert digest(one) != digest(other)


# The verdict: which outcome, with which figures, and what to do next.

PLAIN = (("plain", 0.0), ("moments", 0.5))


def tried(error, distance, variance=0.1):
    """Statistics with a trial on two runs: (plain, moments) for each."""
    trial = Trial(PLAIN, tuple(zip(*error, strict=True)), tuple(zip(*distance, strict=True)))
    return dataclasses.replace(made([variance]), trial=trial)


def test_a_correction_that_helps_says_by_how_much():
    found = verdict(tried([(0.16, 0.09), (0.16, 0.09)], [(0.01, 0.01)] * 2))
    assert found.line == (
        "Helps: 'moments' (each channel's mean and contrast) takes away 25 % of the final latent's error: 40 % to 30 %."
    )
    assert found.outcome is Outcome.HELPS
    assert found.next_step == "Next: connect stats to Quantization Fix and leave it at 'advised'."
    assert found.cost == "Costs in each step: a scale and a shift of the latent; no further model call."
    assert found.seen == (), "the trial of an earlier version"


def test_much_that_is_left_is_said():
    found = verdict(tried([(1.0, 0.49), (1.0, 0.49)], [(0.01, 0.01)] * 2))
    assert (
        found.line.endswith("30 % of the final latent's error: 100 % to 70 %.")
        and "a finer quantization would help more" in found.next_step
    )


def test_one_that_brings_colours_back_says_that():
    """Advised for the distance: the error stays."""
    found = verdict(tried([(0.16, 0.16), (0.16, 0.16)], [(0.16, 0.04), (0.16, 0.04)]))
    assert found.line.endswith("takes away 50 % of the shift of colours and contrast: 40 % to 20 %.")


def test_what_no_correction_helps():
    found = verdict(tried([(0.16, 0.09), (0.16, 0.2)], [(0.01, 0.01)] * 2))
    assert found.outcome is Outcome.CANNOT and "the final latent stays 40 % off" in found.line
    assert "finer quantization" in found.next_step


def test_a_small_error_needs_no_repair_tried_or_not():
    small = tried([(0.16, 0.09), (0.16, 0.2)], [(0.01, 0.01)] * 2, variance=0.004)
    for statistics in (small, made([0.004])):
        found = verdict(statistics)
        assert found.line == "Nothing to repair: the error is 6.3 % of the signal, too little to see."
        assert found.next_step == "Use the model as it is."


def test_no_error_at_all_is_a_mistake_in_the_graph():
    assert "quantized_model" in verdict(made([0.0])).next_step


def test_a_large_error_without_a_trial_is_not_called_beyond_repair():
    found = verdict(made([0.1]))
    assert found.outcome is Outcome.UNTRIED and found.line.startswith("Not tried: the error is 30 % of the signal")
    assert "held_out" in found.next_step


@pytest.mark.parametrize("variance", [0.0, 0.004, 0.1])
def test_it_is_one_line(variance):
    found = verdict(made([variance]))
    assert "\n" not in found.line and len(found.line) < 130 and found.next_step.endswith(".")
