"""Schedules that do not simply fall: flipped, restarting, repeating. No node that watches or reports may end such a run."""

import logging

import pytest
import torch

WINDOW = {"start_percent": 0.0, "end_percent": 1.0}
TILES = {"tile": 6, "stride": 4, "confidence": "gradient"}


def flipped(sigmas):
    from comfy_extras.nodes_custom_sampler import FlipSigmas

    run = getattr(FlipSigmas, "execute", None) or FlipSigmas().get_sigmas
    found = run(sigmas)
    return (found.args if hasattr(found, "args") else found)[0]


SCHEDULES = {
    "falling": lambda sigmas: sigmas,
    "flipped": flipped,
    "restart": lambda sigmas: torch.cat([sigmas[:4], sigmas[2:]]),
    "repeated": lambda sigmas: sigmas.repeat_interleave(2)[:-1],
}
each_schedule = pytest.mark.parametrize("schedule", SCHEDULES)
each_sampler = pytest.mark.parametrize("sampler", ["euler", "heun"])


@pytest.fixture
def sampled(comfy, tiny):
    def sampled(model, family, sampler, sigmas, callback=None):
        latent = tiny.latent(family)
        noise = comfy.sample.prepare_noise(latent, 0)
        chosen = comfy.samplers.sampler_object(sampler)
        return comfy.sample.sample_custom(
            model,
            noise,
            3.0,
            chosen,
            sigmas,
            *tiny.conditioning(family),
            latent,
            callback=callback,
            disable_pbar=True,
            seed=0,
        )

    return sampled


@pytest.fixture
def sigmas(comfy, tiny):
    def sigmas(family, schedule):
        sampling = tiny.model(family).get_model_object("model_sampling")
        return SCHEDULES[schedule](comfy.samplers.calculate_sigmas(sampling, "simple", 5))

    return sigmas


def samg(model):
    from gimbal.nodes.samg import GimbalSAMG

    options = {"preset": "w_min and w_max", "w_min": 2.0, "w_max": 5.0, "normalize": "minmax", "curve": "linear"}
    return GimbalSAMG.execute(model, **options, scope="clip", strength=1.0, **WINDOW).args[0]


def aqclip(model, ema_beta=0.8):
    from gimbal.nodes.aqclip import GimbalAQClip

    return GimbalAQClip.execute(model, corridor="strong", strength=1.0, ema_beta=ema_beta, **TILES, **WINDOW).args[0]


def watch(model):
    from gimbal.nodes.confidence import GimbalConfidence

    return GimbalConfidence.execute(model, **TILES, **WINDOW).args[0]


def micrograin(model):
    from gimbal.nodes.micrograin import GimbalMicrograin

    options = {"form": "hard", "q_low": 0.1, "q_high": 0.9, "strength": 1.0, "knee": 0.8, "alpha": 2.0}
    return GimbalMicrograin.execute(model, **options, **WINDOW).args[0]


def steps_seen(model, samples):
    from gimbal.host.sampling.hooks import stages_of

    (stage,) = stages_of(model)
    return [call.step for call in stage.observer.run_that_made(samples)[0].calls]


@each_schedule
@pytest.mark.parametrize(
    ("family", "sampler"), [("sd15", "heun"), ("sd15", "dpmpp_2s_ancestral"), ("sd15", "dpmpp_2m"), ("sd3", "euler")]
)
def test_every_node_brings_the_picture_home(tiny, sampled, sigmas, family, sampler, schedule):
    levels, model = sigmas(family, schedule), tiny.model(family)
    result = sampled(micrograin(watch(aqclip(samg(model)))), family, sampler, levels)
    plain = sampled(model, family, sampler, levels)
    # Some of these schedules lead the sampler itself to NaN, and flow's sigma 1 at the end to infinity.
    assert result.shape == plain.shape and bool(result.isfinite().all()) == bool(plain.isfinite().all())
    assert not torch.equal(result, plain)


@each_schedule
@each_sampler
@pytest.mark.parametrize("node", [samg, watch, aqclip])
def test_what_was_seen_is_told_by_the_steps_of_the_run(tiny, sampled, sigmas, node, sampler, schedule):
    levels = sigmas("sd15", schedule)
    model = node(tiny.model("sd15"))
    found = steps_seen(model, sampled(model, "sd15", sampler, levels))
    assert sorted(set(found)) == list(range(len(levels) - 1)) and found == sorted(found)


@each_schedule
def test_the_average_advances_once_a_step(tiny, sampled, sigmas, schedule, monkeypatch):
    from gimbal.core import aqclip as kernel

    named = []
    average = kernel.AQClipState.average

    def spy(self, corridor, beta, layout, step=None):
        named.append(step)
        return average(self, corridor, beta, layout, step)

    monkeypatch.setattr(kernel.AQClipState, "average", spy)
    levels = sigmas("sd15", schedule)
    sampled(aqclip(tiny.model("sd15")), "sd15", "euler", levels)
    assert named == list(range(len(levels) - 1))
    named.clear()
    sampled(aqclip(tiny.model("sd15"), ema_beta=0.0), "sd15", "euler", levels)
    assert named == [], "nothing is averaged, so neither is the step asked for, which waits for the device"


def test_the_step_is_not_asked_for_without_an_average(tiny, sampled, sigmas, monkeypatch):
    from gimbal.core.schedule import StepCounter

    def asked(self, sigma, begun):
        raise AssertionError("the value of sigma was asked for")

    monkeypatch.setattr(StepCounter, "step", asked)
    sampled(aqclip(tiny.model("sd15"), ema_beta=0.0).clone(), "sd15", "euler", sigmas("sd15", "falling")[:1])
    with pytest.raises(AssertionError, match="asked for"):
        sampled(aqclip(tiny.model("sd15")), "sd15", "euler", sigmas("sd15", "falling"))


def test_the_callers_callback_is_called_as_without_a_node(tiny, sampled, sigmas):
    seen = []
    for model in (tiny.model("sd15"), watch(tiny.model("sd15"))):
        calls = []
        sampled(model, "sd15", "euler", sigmas("sd15", "falling"), lambda *told, calls=calls: calls.append(told))
        seen.append(calls)
    plain, ours = seen
    assert len(plain) == len(ours) == 5
    for one, other in zip(plain, ours, strict=True):
        assert one[0] == other[0] and one[3] == other[3] and torch.equal(one[1], other[1])


@each_schedule
@each_sampler
def test_single_calls_are_corrected_on_any_schedule(tiny, sampled, sigmas, sampler, schedule, caplog):
    import sys

    from gimbal.nodes.qdrift import GimbalQDrift

    caplog.set_level(logging.INFO)
    model, levels = tiny.model("sd15"), sigmas("sd15", schedule)
    options = {
        "correction": "drift",
        "strength": 1.0,
        "channels": "channel",
        "rule": "auto",
        "variance": "conditional",
    }
    options |= {"bias": "off", "unsupported": "correct each call", **WINDOW}
    patched = GimbalQDrift.execute(model, sys.modules["tiny_models"].statistics(model), **options).args[0]
    result = sampled(patched, "sd15", sampler, levels)
    assert result.isfinite().all()
    assert torch.equal(result, sampled(model, "sd15", sampler, levels)) == (schedule == "flipped")  # no step down
