"""A calibration that finds a precision plan under a budget, and the node that applies it."""

import logging
import math
from dataclasses import replace

import pytest
import torch

GIVEN = {"steps": 4, "budget": 0.5, "correction": "drift", "filename": "planned"}


@pytest.fixture
def run(folders, calibrate, tiny):
    def run(**changes):
        models = {"full_model": tiny.model("sd3"), "quantized_model": tiny.quantized("sd3")}
        return calibrate("sd3", **{**models, **GIVEN, **changes})

    return run


def fixed(model, stats, correction="plan", strength=1.0):
    from gimbal.nodes.qdrift import GimbalQDrift

    how = {"channels": "scalar", "rule": "auto", "variance": "conditional", "bias": "off"}
    window = {"start_percent": 0.0, "end_percent": 1.0}
    rest = {"unsupported": "stop with an error", **how, **window}
    return GimbalQDrift.execute(model, stats, correction=correction, strength=strength, **rest).args[0]


def kept(model, **steps):
    from gimbal.nodes.precision_plan import GimbalPrecisionPlan

    return GimbalPrecisionPlan.execute(model, **{"first_steps": 0, "last_steps": 0, **steps}).args[0]


def latent(comfy, tiny, model, seed):
    """As the calibration samples: 4 steps of Euler at cfg 3."""
    noise = comfy.sample.prepare_noise(tiny.latent("sd3"), seed)
    return comfy.sample.sample(
        model, noise, 4, 3.0, "euler", "simple", *tiny.conditioning("sd3"), tiny.latent("sd3"), disable_pbar=True
    )


def test_it_measures_each_part_and_keeps_to_the_budget(comfy, tiny, run):
    """The gain of leaving the first step unrounded is what the node Keep Composition gives there."""
    from gimbal.calibration.trial import compared

    found = run()[0].plan
    assert found is not None and 0 < found.share <= 0.5 == found.budget
    ranges = [each for each in found.measured if each.exemption.layers is None]
    groups = [each for each in found.measured if each.exemption.layers is not None]
    assert (
        len(ranges) == 4
        and len(groups) >= 2
        and {each.exemption for each in found.measured} >= set(found.plan.exemptions)
    )
    assert ranges[0].exemption.sigma_start == math.inf
    gains = []
    for seed in (11, 12):
        wanted = latent(comfy, tiny, tiny.model("sd3"), seed)
        quantized = tiny.quantized("sd3")
        plain, first = (
            compared(latent(comfy, tiny, model, seed), wanted)[0]
            for model in (quantized, kept(quantized, first_steps=1))
        )
        gains.append(1.0 - first / plain)
    assert ranges[0].gain == pytest.approx(sum(gains) / 2, rel=1e-3, abs=1e-4)


def test_the_file_holds_it_and_the_trial_tries_it(run):
    from gimbal.calibration.report import describe, text
    from gimbal.calibration.statistics import QDriftStatistics
    from gimbal.calibration.trial import Trial
    from gimbal.calibration.verdict import verdict

    found, _, path, _ = run(held_out=1, correction="drift and moments")
    loaded = QDriftStatistics.load(path)
    assert loaded.plan == found.plan and loaded.layers is not None and loaded.state_sigma is not None
    names = [name for name, _ in loaded.trial.candidates]
    assert names[0] == "plain" and {"plan", "drift", "moments", "layers", "layers and moments"} <= set(names)
    assert loaded.trial.mean_error(names.index("plan")) < loaded.trial.mean_error(0)
    for told in (describe(loaded), text(loaded)):
        assert told.count("* chosen: ") == 1 and "precision plan, budget 50 %" in told
    held = Trial((("plain", 0.0), ("plan", 1.0)), ((1.0, 1.0), (0.1, 0.1)), ((1.0, 1.0), (0.1, 0.1)))
    told = verdict(replace(loaded, trial=held))
    assert "'plan' (unrounded activations where they count most) takes away" in told.line
    assert told.cost == f"Precision plan: {loaded.plan.describe()}."


def test_the_rest_is_found_under_the_plan(run):
    """The error of the calibrated calls is that of the network with the plan on: less than without."""
    planned, plain = run()[0], run(budget=0.0, filename="plain")[0]
    assert plain.plan is None
    power = [float(each.moments(i).error_power().sum()) for each in (planned, plain) for i in range(4)]
    assert sum(power[:4]) < sum(power[4:])
    steps = [i for i, sigma in enumerate(planned.sigma.tolist()) if planned.plan.plan.acts_at(sigma)]
    assert steps and all(power[i] < power[4 + i] for i in steps)


def early(stats):
    """The same statistics under a plan of the first two of four steps."""
    from gimbal.calibration.found_plan import FoundPlan
    from gimbal.core.precision_plan import first_and_last

    sigmas = [*stats.sigma.tolist(), 0.0]
    return replace(stats, plan=FoundPlan(first_and_last(sigmas, 2, 0), budget=0.5, share=0.5))


def test_the_fix_applies_it(comfy, tiny, run):
    """Of the first two steps: bit for bit Keep Composition's, under any correction, and off at strength 0."""
    stats = early(run(budget=0.0)[0])
    model = tiny.quantized("sd3")
    before = latent(comfy, tiny, model, 5)
    wanted = latent(comfy, tiny, kept(model, first_steps=2), 5)
    assert not torch.equal(wanted, before)
    assert torch.equal(latent(comfy, tiny, fixed(model, stats), 5), wanted)
    assert torch.equal(latent(comfy, tiny, fixed(model, stats, strength=0.0), 5), before)
    drift = latent(comfy, tiny, fixed(model, replace(stats, plan=None), "drift"), 5)
    both = latent(comfy, tiny, fixed(model, stats, "drift"), 5)
    other = latent(comfy, tiny, fixed(kept(model, first_steps=2), replace(stats, plan=None), "drift"), 5)
    assert torch.equal(both, other) and not torch.equal(both, drift)
    assert torch.equal(latent(comfy, tiny, model, 5), before)


def test_it_works_in_a_sampler_as_well(comfy, tiny, run):
    from gimbal.nodes.qdrift import GimbalQDriftSampler

    stats = early(run(budget=0.0)[0])
    how = {"channels": "scalar", "rule": "auto", "variance": "conditional", "bias": "off", "strength": 1.0}
    rest = {"unsupported": "stop with an error", "start_percent": 0.0, "end_percent": 1.0, "correction": "plan"}
    sampler = GimbalQDriftSampler.execute(stats, "euler", **how, **rest).args[0]
    model = tiny.quantized("sd3")
    noise, blank = comfy.sample.prepare_noise(tiny.latent("sd3"), 5), tiny.latent("sd3")
    schedule = torch.tensor([*stats.sigma.tolist(), 0.0])
    ours = comfy.sample.sample_custom(model, noise, 3.0, sampler, schedule, *tiny.conditioning("sd3"), blank)
    euler = comfy.samplers.sampler_object("euler")
    wanted = comfy.sample.sample_custom(
        kept(model, first_steps=2), noise, 3.0, euler, schedule, *tiny.conditioning("sd3"), blank
    )
    assert torch.equal(ours, wanted)


def test_statistics_without_one_say_what_is_lacking(tiny, run):
    with pytest.raises(ValueError, match="hold no precision plan, which a calibration finds whose budget is above 0"):
        fixed(tiny.quantized("sd3"), run(budget=0.0)[0])


def test_a_model_that_rounds_no_activations_gets_none(tiny, twin, run, caplog):
    with caplog.at_level(logging.WARNING):
        found = run(quantized_model=twin("sd3"))[0]
    assert found.plan is None and "without a precision plan: This model rounds no activations" in caplog.text


def test_a_plan_that_meets_another_model_says_so(comfy, tiny, twin, run, caplog):
    stats = early(run(budget=0.0)[0])
    model = twin("sd3")
    with caplog.at_level(logging.WARNING):
        after = latent(comfy, tiny, fixed(model, stats), 5)
    assert caplog.text.count("the precision plan found nothing to change") == 1
    assert torch.equal(after, latent(comfy, tiny, model, 5))


@pytest.mark.parametrize("budget", [math.nan, -0.1, 1.5])
def test_a_budget_that_is_no_share_is_refused_before_anything_runs(folders, run, budget):
    with pytest.raises(ValueError, match=r"Q-Drift Calibrate: budget is .*; set a share of 0"):
        run(budget=budget)
    assert not list(folders.rglob("*.safetensors")) and not list(folders.rglob("*.partial"))


def test_a_calibration_without_a_budget_says_that_one_could_help(run, tiny, twin, caplog):
    hint = "with budget 0.1 a precision plan"
    for changes, said in (
        ({"budget": 0.0}, True),
        ({}, False),
        ({"budget": 0.0, "quantized_model": twin("sd3")}, False),
    ):
        caplog.clear()
        with caplog.at_level(logging.INFO):
            run(**{"held_out": 1, **changes})
        assert "wrote" in caplog.text and (hint in caplog.text) == said, changes
