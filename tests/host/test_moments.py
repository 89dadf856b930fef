"""Moment matching in ComfyUI's sampling: its closed loop against a plain one, what it does, what it leaves alone."""

import logging
import os

import pytest
import torch
from calibrating import Cancelled, assert_same, calibrate_from, cancelling, counted, evaluate, record
from rounding import allowed, assert_equal_but_for_rounding, of_run

pytestmark = pytest.mark.usefixtures("folders")

OPTIONS = {
    "strength": 1.0,
    "channels": "scalar",
    "rule": "auto",
    "variance": "conditional",
    "bias": "off",
    "unsupported": "stop with an error",
    "start_percent": 0.0,
    "end_percent": 1.0,
}
MAPS = ("state_sigma", "state_scale", "state_shift", "state_scale_drift", "state_shift_drift")
MAPS += ("state_scale_layers", "state_shift_layers")
MATCH = {"correction": "drift and moments"}
RUNS = [("sd3", name) for name in ("euler", "dpmpp_2m", "heun", "deis", "euler_ancestral", "res_multistep")]
RUNS += [("sd15", name) for name in ("dpmpp_2m", "dpm_2")]


@pytest.fixture
def coarse(tiny):
    """`coarse(family)`: a twin that errs by a lot. Of its weights alone: rounded activations jump at the last bit."""

    def coarse(family="sd3"):
        from gimbal.nodes.simulate_quantization import GimbalSimulateQuantization

        how = {"preset": "own", "weight_bits": "2", "activation_bits": "off", "group_size": 32, "rank": 0}
        return GimbalSimulateQuantization.execute(tiny.model(family), layers="blocks", **how).args[0]

    return coarse


def corrected(model, stats, **changes):
    from gimbal.nodes.qdrift import GimbalQDrift

    return GimbalQDrift.execute(model, stats, **{**OPTIONS, "correction": "drift", **changes}).args[0]


def assert_all_same(one, other):
    assert_same(one, other)
    for name in MAPS:
        assert torch.equal(getattr(one, name), getattr(other, name)), name
    assert one.trial == other.trial
    assert one.layers.places == other.layers.places and torch.equal(one.layers.offset, other.layers.offset)
    assert torch.equal(one.layers.sigma_end, other.layers.sigma_end)


def moments(states):
    """Mean and deviation of a channel over runs and positions."""
    pooled = torch.cat([state.double().movedim(1, 0).flatten(1) for state in states], 1)
    return pooled.mean(1), pooled.std(1, correction=0)


def trajectory(tiny, model, family, **options):
    """The states of a run, from the noise to the last but one."""
    states = []
    tiny.sample(model, family, callback=lambda i, denoised, x, n: states.append(x.clone()), **options)
    return torch.stack(states)


@pytest.mark.numerics
@pytest.mark.parametrize(("family", "sampler"), [("sd3", "euler"), ("sd15", "dpmpp_2m")])
def test_it_equals_a_plain_loop(comfy, tiny, calibrate, coarse, family, sampler):
    """Euler and DPM-Solver++(2M) written out, run by run and step by step, from full precision's states."""
    steps = 5  # in fewer a multistep solver's history can be told in two ways
    statistics, *_ = calibrate(family, quantized_model=coarse(family), sampler_name=sampler, steps=steps, **MATCH)
    full, quantized = tiny.model(family), coarse(family)
    positive, negative = tiny.conditioning(family)
    levels = comfy.samplers.KSampler(full, steps, "cpu", sampler, "simple").sigmas.tolist()
    own = of_run(lambda model: trajectory(tiny, model, family, sampler=sampler, steps=steps), quantized)
    seen = {}
    for seed in (11, 12):
        found = seen.setdefault(seed, [])
        end = tiny.sample(
            full,
            family,
            sampler=sampler,
            steps=steps,
            seed=seed,
            callback=lambda i, d, x, n, to=found: to.append(x.clone()),
        )
        found.append(full.model.process_latent_in(end))
    states = {seed: found[0] for seed, found in seen.items()}
    older = {}
    for i in range(steps):
        sigma, following = levels[i : i + 2]
        for seed, x in states.items():
            denoised = evaluate(comfy, quantized, x, sigma, positive, negative, 3.0)
            towards = denoised
            if sampler == "dpmpp_2m" and i > 0 and following > 0:
                h, before = (torch.tensor(a / b).log() for a, b in ((sigma, following), (levels[i - 1], sigma)))
                towards = denoised + (denoised - older[seed]) * h / before / 2
            states[seed] = towards + (x - towards) * (following / sigma)
            older[seed] = denoised
        wanted, got = moments([found[i + 1] for found in seen.values()]), moments(states.values())
        scale = wanted[1] / got[1]
        shift = wanted[0] - scale * got[0]
        # A channel's mean and deviation are off by no more than its states are.
        off = allowed(torch.cat(list(states.values())), own) / float(got[1].min())
        torch.testing.assert_close(statistics.state_scale[i].double(), scale, rtol=2 * off, atol=0.0)
        most = off * float(wanted[1].max() + wanted[0].abs().max())
        torch.testing.assert_close(statistics.state_shift[i].double(), shift, rtol=0.0, atol=most)
        assert statistics.state_sigma[i] == pytest.approx(following)
        view = (1, -1, 1, 1)
        states = {seed: (scale.view(view) * x + shift.view(view)).float() for seed, x in states.items()}


@pytest.mark.parametrize(("family", "sampler"), RUNS)
def test_calibrated_runs_end_with_full_precisions_moments(tiny, calibrate, coarse, family, sampler):
    """The same runs under the node: mean and deviation of each channel are full precision's, which plain sampling misses."""
    statistics, *_ = calibrate(family, quantized_model=coarse(family), sampler_name=sampler, **MATCH)

    def ends(model):
        latents = [tiny.sample(model, family, sampler=sampler, seed=seed) for seed in (11, 12)]
        return moments([model.model.process_latent_in(latent) for latent in latents])

    wanted, plain = ends(tiny.model(family)), ends(coarse(family))
    apart = max(float((one - other).abs().max()) for one, other in zip(wanted, plain, strict=True))
    for correction in ("moments", "both"):
        found = ends(corrected(coarse(family), statistics, correction=correction))
        for ours, theirs in zip(found, wanted, strict=True):
            assert float((ours - theirs).abs().max()) < 0.01 * apart, (correction, apart)


def test_trial_is_what_the_node_does(tiny, calibrate, coarse):
    from gimbal.calibration.trial import compared

    statistics, *_ = calibrate(quantized_model=coarse(), held_out=2, **MATCH)
    tried = statistics.trial
    assert tried.candidates[0] == ("plain", 0.0) and tried.runs == 2 and len(tried.candidates) == 7
    assert statistics.provenance.seeds == (11, 12), "held-out runs are no part of the statistics"
    model = tiny.model("sd3").model
    for place, seed in enumerate((13, 14)):
        full = model.process_latent_in(tiny.sample(tiny.model("sd3"), "sd3", seed=seed))
        for i, (correction, strength) in enumerate(tried.candidates):
            how = {"correction": correction, "strength": strength}
            under = coarse() if correction == "plain" else corrected(coarse(), statistics, **how)
            latent = model.process_latent_in(tiny.sample(under, "sd3", seed=seed))
            error, distance = compared(latent, full)
            assert tried.error[i][place] == pytest.approx(error, rel=1e-3)
            assert tried.distance[i][place] == pytest.approx(distance, rel=1e-3)


def test_drift_alone_is_tried_too(calibrate):
    statistics, *_ = calibrate(held_out=1)
    assert [kind for kind, _ in statistics.trial.candidates] == ["plain", "drift"]
    assert statistics.state_sigma is None


def test_modes_and_the_split_pair_agree(tiny, twin, calibrate):
    passes, _, one, *_ = calibrate(held_out=1, **MATCH)
    turns, _, other, *_ = calibrate(held_out=1, mode="interleaved", **MATCH)
    assert one == other
    assert_all_same(passes, turns)
    record(tiny, twin, held_out=1)
    assert_all_same(calibrate_from(tiny, twin, "t", **MATCH)[0], passes)
    drift, _, third, *_ = calibrate(held_out=1)
    assert third != one, "a file that holds more is not written over"
    assert_same(drift, passes)


@pytest.mark.parametrize("after", [3, 8, 11, 14, 20, 26, 32, 47])
def test_cancelled_anywhere_it_goes_on(twin, calibrate, folders, after):
    """6 calls measure, 6 correct layers, 3 times 6 match moments, 21 try: what was finished before is not asked again."""
    undisturbed, _, path, *_ = calibrate(held_out=1, **MATCH)
    os.unlink(path)
    quantized, calls = cancelling(twin("sd3"), after=after)
    with pytest.raises(Cancelled):
        calibrate(held_out=1, quantized_model=quantized, **MATCH)
    calls.clear()
    assert_all_same(calibrate(held_out=1, quantized_model=quantized, **MATCH)[0], undisturbed)
    done = [part for part in (3, 6, 9, 12, 18, 24, 30, *range(33, 52, 3)) if part <= after - 1]
    assert len(calls) == 51 - (done[-1] if done else 0)
    assert not list(folders.rglob("*.partial"))


def test_broken_parts_are_done_again(twin, calibrate, folders):
    """Maps and trials cut short on the disk: what they stood for is recorded and measured anew."""
    undisturbed, _, path, *_ = calibrate(held_out=2, **MATCH)
    os.unlink(path)
    quantized, _ = cancelling(twin("sd3"), after=30 + 21 + 2)  # in the second held-out run
    with pytest.raises(Cancelled):
        calibrate(held_out=2, quantized_model=quantized, **MATCH)
    parts = list(folders.rglob("*.partial"))
    assert len(parts) == 2 + 1 + 3 + 7 + 4 + 2, (
        "runs, layers, maps, a run's candidates, full precision's runs and means"
    )
    for part in parts:
        part.write_bytes(part.read_bytes()[:60])
    assert_all_same(calibrate(held_out=2, quantized_model=quantized, **MATCH)[0], undisturbed)


def test_evaluations_and_progress(tiny, twin, calibrate, monkeypatch):
    import comfy.utils

    seen = []
    monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_HOOK", lambda value, total, *_, **__: seen.append((value, total)))
    (full, first), (quantized, second) = counted(tiny.model("sd3")), counted(twin("sd3"))
    calibrate(full_model=full, quantized_model=quantized, held_out=1, **MATCH)
    assert len(first) == 3 * 3 and len(second) == 3 * (2 + 2 + 3 * 2 + 7)
    values = [value for value, _ in seen]
    assert values == sorted(values) and {total for _, total in seen} == {values[-1]}


def test_samplers_without_steps_are_refused_before_anything(tiny, twin, calibrate, caplog):
    full, calls = counted(tiny.model("sd3"))
    with pytest.raises(ValueError, match=r"unipc.*Moments cannot be matched.*set correction to 'drift'"):
        calibrate(full_model=full, sampler_name="uni_pc", **MATCH)
    assert not calls
    with caplog.at_level(logging.WARNING):
        statistics, *_ = calibrate(sampler_name="uni_pc", held_out=1)
    assert statistics.trial is None and "nothing can be tried" in caplog.text


def stats_of(tiny, family="sd3", **changes):
    import sys

    return sys.modules["tiny_models"].statistics(tiny.model(family), **changes)


def test_the_node_says_what_it_cannot(tiny, twin):
    import dataclasses

    found = stats_of(tiny)
    without = dataclasses.replace(found, **dict.fromkeys(MAPS))
    for correction in ("moments", "both"):
        with pytest.raises(ValueError, match="hold no maps for it; calibrate with correction 'drift and moments'"):
            corrected(twin("sd3"), without, correction=correction)
    model = corrected(twin("sd3"), found, correction="moments", unsupported="correct each call")
    with pytest.raises(ValueError, match=r"unipc.*Choose another sampler"):
        tiny.sample(model, "sd3", sampler="uni_pc")


def test_advice_is_followed_and_said(tiny, twin, caplog):
    import dataclasses

    from gimbal.calibration.trial import Trial

    found, model = stats_of(tiny), twin("sd3")
    candidates = (("plain", 0.0), ("drift", 1.0), ("moments", 0.5))

    def advised(*errors):
        rows = tuple((error,) for error in errors)
        return dataclasses.replace(found, trial=Trial(candidates, rows, ((0.0,),) * 3))

    with caplog.at_level(logging.INFO):
        better = tiny.sample(corrected(model, advised(0.2, 0.2, 0.1), correction="advised"), "sd3")
        assert "advised is moments at strength 0.5" in caplog.text
    by_hand = tiny.sample(corrected(model, found, correction="moments", strength=0.5), "sd3")
    assert torch.equal(better, by_hand)
    caplog.clear()
    with caplog.at_level(logging.INFO):
        assert corrected(model, advised(0.2, 0.2, 0.2), correction="advised") is model
        assert "changes nothing, as advised" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.INFO):
        untried = tiny.sample(corrected(model, found, correction="advised"), "sd3")
        assert "hold no advice" in caplog.text
    assert torch.equal(untried, tiny.sample(corrected(model, found), "sd3"))


@pytest.mark.numerics
def test_neutral_window_and_mask(comfy, tiny, twin):
    found, model = stats_of(tiny), twin("sd3")
    plain = tiny.sample(model, "sd3")
    assert torch.equal(tiny.sample(corrected(model, found, correction="moments", strength=0.0), "sd3"), plain)
    empty = corrected(model, found, correction="moments", start_percent=0.5, end_percent=0.5)
    own = of_run(lambda model: tiny.sample(model, "sd3"), model, plain)
    assert_equal_but_for_rounding(tiny.sample(empty, "sd3"), plain, own)
    whole = corrected(model, found, correction="moments")
    assert float((tiny.sample(whole, "sd3") - plain).abs().max()) > 0.01
    mask = torch.zeros(1, 1, 16, 16)
    mask[..., 8:] = 1.0
    latent = tiny.latent("sd3") + 0.3
    kept, moved = (tiny.sample(each, "sd3", latent=latent, noise_mask=mask) for each in (model, whole))
    assert_equal_but_for_rounding(kept[..., :8], moved[..., :8], own)
    assert float((kept - moved)[..., 8:].abs().max()) > 0.01


def test_a_run_outside_the_maps_says_so(tiny, twin, caplog):
    import dataclasses

    found = stats_of(tiny)
    short = {name: getattr(found, name)[:1] for name in MAPS if getattr(found, name) is not None}
    model = corrected(twin("sd3"), dataclasses.replace(found, **short), correction="moments")
    with caplog.at_level(logging.WARNING):
        tiny.sample(model, "sd3", sigmas=torch.tensor([0.4, 0.2, 0.0]))
    assert "no step of this run lies where the statistics have a map" in caplog.text
