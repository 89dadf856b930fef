"""The layer correction in ComfyUI's sampling: what it adds where, what it leaves alone, what it leaves behind."""

import dataclasses
import logging

import pytest
import torch
from calibrating import calibrate_from, record
from rounding import assert_equal_but_for_rounding, of_run

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


def corrected(model, stats, correction="layers", **changes):
    from gimbal.nodes.qdrift import GimbalQDrift

    return GimbalQDrift.execute(model, stats, **{**OPTIONS, "correction": correction, **changes}).args[0]


def network(model):
    return model.model.diffusion_model


def hooks(model):
    return [name for name, module in network(model).named_modules() if module._forward_hooks]


@pytest.fixture
def stats(tiny):
    """`stats(family)`: statistics with random offsets at the linear layers that write to the residual stream."""

    def stats(family="sd3", scale=0.3, kind="residual", levels=(0.5, 0.0)):
        import sys

        from gimbal.core import places
        from gimbal.core.layer_correction import LayerOffsets
        from gimbal.core.place_hooks import observing

        model = tiny.model(family)
        with observing(network(model), places.names(network(model), kind)) as seen:
            tiny.sample(model, family, steps=1, cfg=1.0)
        width = sum(place.channels for place in seen)
        offset = scale * torch.randn(len(levels), width, generator=torch.Generator().manual_seed(0))
        ends = torch.tensor(levels, dtype=torch.float64)
        found = sys.modules["tiny_models"].statistics(model)
        maps = {"state_scale_layers": found.state_scale, "state_shift_layers": found.state_shift}
        return dataclasses.replace(found, **maps, layers=LayerOffsets(tuple(seen), ends, offset.bfloat16()))

    return stats


@pytest.mark.parametrize("family", ["sd3", "sd15"])
@pytest.mark.parametrize("kind", ["residual", "block"])
def test_each_place_gets_its_row_of_the_call(tiny, stats, family, kind):
    """Against a plain network whose modules are hooked by hand for the whole run."""
    levels = (0.5, 0.0) if family == "sd3" else (2.0, 0.0)
    found, model = stats(family, kind=kind, levels=levels), tiny.model(family)
    assert found.layers.places
    got = tiny.sample(corrected(model, found), family)
    sigma = []

    def note(module, args, kwargs):
        sigma[:] = [kwargs["transformer_options"]["sigmas"]]

    def add(module, args, output, place):
        row = found.layers.offset[0 if float(sigma[0][0]) > levels[0] else 1].float()
        part = row[found.layers.layout.columns(place)]
        shape = (-1,) if place.axis == -1 else (-1, *[1] * (output.ndim - 2 if torch.is_tensor(output) else 0))
        if torch.is_tensor(output):
            return output + part.view(shape)
        parts = list(output)
        parts[place.part] = parts[place.part] + part.view(shape)
        return tuple(parts)

    handles = [network(model).register_forward_pre_hook(note, with_kwargs=True)]
    for place in found.layers.places:
        module = network(model).get_submodule(place.name)
        handles.append(module.register_forward_hook(lambda m, a, o, place=place: add(m, a, o, place)))
    try:
        wanted = tiny.sample(model, family)
    finally:
        for handle in handles:
            handle.remove()
    own = of_run(lambda model: tiny.sample(model, family), model)
    assert_equal_but_for_rounding(got, wanted, own)
    assert float((got - tiny.sample(model, family)).abs().max()) > 100 * own


def test_it_leaves_nothing_behind(tiny, stats):
    model = tiny.model("sd3")
    before = tiny.sample(model, "sd3")
    patched = corrected(model, stats())
    tiny.sample(patched, "sd3")
    assert not hooks(model) and torch.equal(tiny.sample(model, "sd3"), before)


def test_no_hook_is_left_when_a_call_fails(tiny, stats):
    class Stop(Exception):
        pass

    model, seen = tiny.model("sd3"), []

    def fail(module, args):
        seen.append(hooks(model))
        raise Stop

    patched = corrected(model, stats())
    last = network(model).get_submodule(stats().layers.places[-1].name)
    handle = last.register_forward_pre_hook(fail)
    try:
        with pytest.raises(Stop):
            tiny.sample(patched, "sd3")
    finally:
        handle.remove()
    assert seen[0] and not hooks(model)


def test_strength_0_is_bit_exact_and_strength_scales(tiny, stats):
    found, model = stats(), tiny.model("sd3")
    plain = tiny.sample(model, "sd3")
    assert torch.equal(tiny.sample(corrected(model, found, strength=0.0), "sd3"), plain)
    half = dataclasses.replace(found, layers=dataclasses.replace(found.layers, offset=found.layers.offset / 2))
    own = of_run(lambda model: tiny.sample(model, "sd3"), model, plain)
    by_strength = tiny.sample(corrected(model, found, strength=0.5), "sd3")
    assert_equal_but_for_rounding(by_strength, tiny.sample(corrected(model, half), "sd3"), own)


@pytest.mark.parametrize("sampler", ["uni_pc", "dpmpp_sde", "dpmpp_2m"])
def test_layers_work_under_any_sampler(tiny, stats, sampler):
    model = tiny.model("sd3")
    plain = tiny.sample(model, "sd3", sampler=sampler)
    found = tiny.sample(corrected(model, stats()), "sd3", sampler=sampler)
    assert bool(found.isfinite().all()) and not torch.equal(found, plain)


def test_window_chooses_the_calls(tiny, stats):
    found, model = stats(), tiny.model("sd3")
    plain = tiny.sample(model, "sd3")
    own = of_run(lambda model: tiny.sample(model, "sd3"), model, plain)
    outside = corrected(model, found, start_percent=0.5, end_percent=0.5)
    late = corrected(model, found, start_percent=0.5)
    states = {}
    for name, each in (("plain", model), ("late", late)):
        states[name] = []
        tiny.sample(each, "sd3", callback=lambda i, d, x, n, to=states[name]: to.append(d.clone()))
    assert_equal_but_for_rounding(states["late"][0], states["plain"][0], own)
    assert float((states["late"][-1] - states["plain"][-1]).abs().max()) > 100 * own
    assert_equal_but_for_rounding(tiny.sample(outside, "sd3"), plain, own)


def test_moments_act_beside_it(tiny, stats):
    found, model = stats(), tiny.model("sd3")
    both = tiny.sample(corrected(model, found, "layers and moments"), "sd3")
    for one in ("layers", "moments"):
        assert float((both - tiny.sample(corrected(model, found, one), "sd3")).abs().max()) > 0.01


def test_batches_and_cfg_1(tiny, stats):
    found, model = stats(), tiny.model("sd3")
    patched = corrected(model, found)
    assert bool(tiny.sample(patched, "sd3", cfg=1.0).isfinite().all())
    latent = tiny.latent("sd3")
    noise = torch.randn(2, *latent.shape[1:], generator=torch.Generator().manual_seed(1))

    def run(model, noise):
        return tiny.sample(model, "sd3", latent=torch.zeros_like(noise), noise=noise)

    from rounding import of_batch, one_by_one

    own = of_batch(run, model, noise)
    assert_equal_but_for_rounding(run(patched, noise), one_by_one(run, patched, noise), own)


def test_another_network_is_refused(tiny, stats):
    found = stats()
    places = list(found.layers.places)
    elsewhere = dataclasses.replace(places[0], name="nowhere.0")
    renamed = dataclasses.replace(found.layers, places=(elsewhere, *places[1:]))
    with pytest.raises(
        ValueError, match=r"Quantization Fix .*: .*another network: here there is no nowhere\.0\. Load the statistics"
    ):
        tiny.sample(corrected(tiny.model("sd3"), dataclasses.replace(found, layers=renamed)), "sd3")
    part = found.layers.only(places[:1])
    narrow = dataclasses.replace(part, places=(dataclasses.replace(places[0], channels=8),), offset=part.offset[:, :8])
    with pytest.raises(ValueError, match=r"gives .* channels and not 8"):
        tiny.sample(corrected(tiny.model("sd3"), dataclasses.replace(found, layers=narrow)), "sd3")


def test_places_that_are_not_passed_are_named(tiny, stats):
    """A block is found by name, so that what it gives is seen in the first call."""
    found = stats(kind="block")
    part = found.layers.only(found.layers.places[:1])
    other = dataclasses.replace(part.places[0], part=7)
    layers = dataclasses.replace(part, places=(other,))
    with pytest.raises(ValueError, match="1 of 1 calibrated layers gave nothing that fits, first"):
        tiny.sample(corrected(tiny.model("sd3"), dataclasses.replace(found, layers=layers)), "sd3")


def test_what_the_statistics_lack_and_what_excludes_itself_is_said(tiny, stats):
    found, model = stats(), tiny.model("sd3")
    without = dataclasses.replace(found, layers=None, state_scale_layers=None, state_shift_layers=None)
    for correction in ("layers", "layers and moments"):
        with pytest.raises(ValueError, match="hold no layer correction for it; calibrate with"):
            corrected(model, without, correction)
    unmatched = dataclasses.replace(found, state_scale_layers=None, state_shift_layers=None)
    with pytest.raises(ValueError, match="hold no maps for it"):
        corrected(model, unmatched, "layers and moments")
    with pytest.raises(ValueError, match=r"bias is 'deterministic' beside correction 'layers'.*Set bias to 'off'"):
        corrected(model, found, bias="deterministic")


def test_compiled_models_are_refused(tiny, stats):
    model = tiny.model("sd3").clone()
    model.model_options = {**model.model_options, "torch_compile_kwargs": {}}
    with pytest.raises(ValueError, match="the model is compiled"):
        tiny.sample(corrected(model, stats()), "sd3")


def test_the_sampler_node_gives_the_same(comfy, tiny, stats):
    from gimbal.nodes.qdrift import GimbalQDriftSampler

    found, model = stats(), tiny.model("sd3")
    how = {**OPTIONS, "correction": "layers and moments"}
    sampler = GimbalQDriftSampler.execute(found, "euler", **how).args[0]
    sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "simple", 3)
    latent, positive, negative = tiny.latent("sd3"), *tiny.conditioning("sd3")
    noise = comfy.sample.prepare_noise(latent, 0)
    got = comfy.sample.sample_custom(
        model, noise, 3.0, sampler, sigmas, positive, negative, latent, disable_pbar=True, seed=0
    )
    assert torch.equal(got, tiny.sample(corrected(model, found, "layers and moments"), "sd3"))


# Finding the places.


def test_a_call_belongs_to_the_step_that_has_begun():
    from gimbal.host.calibrating.layer_means import level_of

    sigmas = torch.tensor([10.0, 4.0, 1.0, 0.0])
    found = [level_of(sigmas, sigma) for sigma in (20.0, 10.0, 6.3, 4.0, 4.0 * (1 + 1e-7), 2.0, 1.0, 0.4)]
    assert found == [0, 0, 0, 1, 1, 1, 2, 2]


def watched(tiny, model, schedule=(1.0, 0.6, 0.0)):
    """One run's means, and the network calls that it took."""
    from gimbal.host.calibrating.layer_means import PlaceWatch
    from gimbal.host.calibrating.sampling_runs import CalibrationRun, Schedule, record

    sigmas = torch.tensor(schedule)
    watch = PlaceWatch("test", sigmas)
    settings = Schedule(tiny.latent("sd3"), None, 3.0, "euler", "simple", sigmas)
    run = CalibrationRun(3, *tiny.conditioning("sd3"), "")
    return record("test", model, settings, run, lambda step: None, watch).means


def test_means_are_those_of_a_plain_run(tiny):
    """Of each branch by itself, against hooks that stay on for the whole run."""
    model = tiny.model("sd3")
    found = watched(tiny, model)
    assert found.residual and found.block and found.mean.shape[:2] == (2, 2) and not hooks(model)
    place = found.residual[-1]
    seen, branches = [], []
    module = network(model).get_submodule(place.name)
    handles = [
        module.register_forward_hook(lambda m, a, y: seen.append(y.float())),
        network(model).register_forward_pre_hook(
            lambda m, a, k: branches.append(k["transformer_options"]["cond_or_uncond"]), with_kwargs=True
        ),
    ]
    try:
        tiny.sample(model, "sd3", seed=3, sigmas=torch.tensor([1.0, 0.6, 0.0]))
    finally:
        for handle in handles:
            handle.remove()
    mean = found.of([place])
    calls = [(y, which) for y, which in zip(seen, branches, strict=True)]
    per_step = len(calls) // 2
    for i, (y, which) in enumerate(calls):
        for chunk, branch in zip(y.chunk(len(which)), which, strict=True):
            torch.testing.assert_close(mean[i // per_step, branch], chunk.mean((0, 1)), rtol=1e-3, atol=1e-5)


def test_blocks_serve_where_layers_differ_and_none_is_said(tiny):
    from types import SimpleNamespace

    from torch import nn

    from gimbal.host.calibrating.layers import common

    model = tiny.model("sd3")
    found = watched(tiny, model)
    assert common(found, model) == found.residual

    def stand_in(names):
        """A network that has modules of these names alone."""
        root = nn.Module()
        for name in names:
            at = root
            for part in name.split("."):
                if not hasattr(at, part):
                    at.add_module(part, nn.Module())
                at = getattr(at, part)
        return SimpleNamespace(model=SimpleNamespace(diffusion_model=root))

    fused = stand_in(place.name for place in found.block)
    assert common(found, fused) == found.block
    with pytest.raises(ValueError, match="has no place in common with full precision's"):
        common(found, stand_in(["elsewhere"]))


def test_a_lora_beside_it_works(tiny, stats):
    """On a patched weight, as LoRAs are: hooks see what the patched layer gives."""
    found, model = stats(), tiny.model("sd3").clone()
    place = found.layers.places[0]
    weight = network(model).get_submodule(place.name).weight
    model.add_patches({f"diffusion_model.{place.name}.weight": (torch.full_like(weight, 0.05),)}, 1.0)
    plain = tiny.sample(model, "sd3")
    assert float((plain - tiny.sample(tiny.model("sd3"), "sd3")).abs().max()) > 0, "the patch acts"
    patched = tiny.sample(corrected(model, found), "sd3")
    assert bool(patched.isfinite().all()) and not torch.equal(patched, plain)
    assert not torch.equal(patched, tiny.sample(corrected(tiny.model("sd3"), found), "sd3"))
    assert not hooks(model)


def test_advice_is_followed(tiny, stats):
    from gimbal.calibration.trial import Trial

    candidates, distance = (("plain", 0.0), ("moments", 1.0), ("layers", 1.0)), ((0.0,),) * 3
    found = dataclasses.replace(stats(), trial=Trial(candidates, ((0.2,), (0.15,), (0.1,)), distance))
    by_hand = tiny.sample(corrected(tiny.model("sd3"), found), "sd3")
    assert torch.equal(tiny.sample(corrected(tiny.model("sd3"), found, "advised"), "sd3"), by_hand)


@pytest.mark.usefixtures("folders")
def test_what_an_earlier_version_recorded_is_calibrated_without(tiny, twin, folders, caplog):
    record(tiny, twin, held_out=1)
    means = list(folders.rglob("*.means.safetensors"))
    assert len(means) == 2, "of the runs to measure, not of the held-out one"
    for path in means:
        path.unlink()
    with caplog.at_level(logging.INFO):
        found = calibrate_from(tiny, twin, "t", correction="drift and moments")[0]
    assert found.layers is None and found.state_map("layers") is None and found.state_map() is not None
    assert [name for name, _ in found.trial.candidates] == ["plain", "drift", "moments", "moments", "both"]
    assert "without layer correction: an earlier version recorded this trajectory" in caplog.text


def test_a_call_never_waits_for_the_device(comfy):
    """No value is read back to the host, once the offsets are where the network is."""
    from torch import nn
    from torch.utils._python_dispatch import TorchDispatchMode

    from gimbal.core.layer_correction import LayerOffsets
    from gimbal.core.places import Place
    from gimbal.host.network_layers import ActingLayers
    from gimbal.host.sampling.hooks import NetworkCall

    class NoReading(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            assert func is not torch.ops.aten._local_scalar_dense.default, "waits for the device"
            return func(*args, **(kwargs or {}))

    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    places = Place("0", 0, 4, -1), Place("1", 0, 4, -1)
    layers = LayerOffsets(places, torch.tensor([0.5, 0.0], dtype=torch.float64), torch.ones(2, 8).bfloat16())
    acting = ActingLayers("test", layers.within(0.9, 0.1), 1.0)
    x = torch.zeros(1, 3, 4)
    call = NetworkCall(net, torch.tensor([0.7]), [0], lambda: net(x))
    plain = net(x)
    moved = acting(call)
    with NoReading():
        again = acting(call)
    assert torch.equal(again, moved) and not torch.equal(moved, plain) and torch.equal(net(x), plain)
