"""SAMG in ComfyUI's guidance: what it computes, beside whom it works, and when it says that it cannot."""

import pytest
import torch
from rounding import assert_equal_but_for_rounding, of_run

OPTIONS = {
    "preset": "w_min and w_max",
    "w_min": -1.0,
    "w_max": -1.0,
    "normalize": "minmax",
    "curve": "linear",
    "scope": "clip",
    "strength": 1.0,
    "start_percent": 0.0,
    "end_percent": 1.0,
}


@pytest.fixture
def samg(comfy):
    from gimbal.nodes.samg import GimbalSAMG

    return lambda model, **changes: GimbalSAMG.execute(model, **{**OPTIONS, **changes}).args[0]


def predictions_of(model):
    """cond and uncond of each call, before any node added later."""
    seen = []

    def watch(args):
        seen.append([prediction.clone() for prediction in args["conds_out"]])
        return args["conds_out"]

    model.set_model_sampler_pre_cfg_function(watch)
    return seen


@pytest.mark.parametrize("family", ["sd3", "sd15", "wan"])
@pytest.mark.parametrize(("w_min", "w_max", "expected"), [(-1.0, -1.0, (1.98, 4.815)), (2.0, 9.0, (2.0, 9.0))])
def test_the_guided_prediction_is_samgs(tiny, denoised_seen, samg, family, w_min, w_max, expected):
    from gimbal.core.samg import samg as kernel

    model = tiny.model(family)
    seen = predictions_of(model)
    guided = denoised_seen(samg(model, w_min=w_min, w_max=w_max), family, cfg=4.5)
    for (cond, uncond), result in zip(seen, guided, strict=True):
        torch.testing.assert_close(result, kernel(cond, uncond, *expected), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("preset", "share"), [("w_min and w_max", 1.0), ("paper's shares: 2/3 to 1.6 of cfg", 1.5)])
def test_the_default_keeps_the_mean_scale_at_cfg_and_the_papers_shares_raise_it(samg, preset, share):
    """Of an energy like that of real guidance, most of it in few places: exponentially distributed to the fourth power."""
    from gimbal.core.samg import samg_cond
    from gimbal.host.sampling.stages import Window
    from gimbal.nodes.samg import SAMGStage

    generator = torch.Generator().manual_seed(0)
    amplitude = torch.empty(4, 1, 64, 64).exponential_(generator=generator).square()
    g = torch.randn(4, 16, 64, 64, generator=generator) * amplitude
    stage = SAMGStage("SAMG", Window(), preset, -1.0, -1.0, "quantile", "linear", "clip", 1.0)
    _, _, scale = samg_cond(g, torch.zeros_like(g), 7.0, stage.range(7.0), "quantile")
    assert float(scale.mean()) == pytest.approx(7.0 * share, rel=0.05)


def test_equal_scales_are_plain_cfg_bit_for_bit(tiny, samg):
    model = tiny.model("sd3")
    assert torch.equal(
        tiny.sample(samg(model, w_min=3.0, w_max=3.0), "sd3", cfg=3.0), tiny.sample(model, "sd3", cfg=3.0)
    )


def test_half_strength_is_half_way_to_the_map(tiny, denoised_seen, samg):
    model = tiny.model("sd3")
    plain, half, full = (denoised_seen(patched)[0] for patched in (model, samg(model, strength=0.5), samg(model)))
    torch.testing.assert_close(half, (plain + full) / 2, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("order", ["before", "behind"])
def test_the_cfg_function_stays_free(tiny, denoised_seen, samg, order):
    """RescaleCFG holds ComfyUI's single CFG slot; wherever it stands in the graph, both act."""
    from comfy_extras.nodes_model_advanced import RescaleCFG

    rescale = lambda model: RescaleCFG().patch(model, 0.7)[0]  # noqa: E731
    model = tiny.model("sd15")
    both = rescale(samg(model)) if order == "before" else samg(rescale(model))
    result = denoised_seen(both, "sd15")[0]
    for one in (model, rescale(model), samg(model)):
        assert not torch.allclose(result, denoised_seen(one, "sd15")[0])
    assert torch.equal(result, denoised_seen(rescale(samg(model)), "sd15")[0])


# What shares the guidance with SAMG: those that rewrite predictions before CFG, the one that is the CFG, those behind it.
NEIGHBOURS = {
    "APG": ("nodes_apg", {"eta": 0.5, "norm_threshold": 5.0, "momentum": 0.0}),
    "TCFG": ("nodes_tcfg", {}),
    "FreSca": ("nodes_fresca", {"scale_low": 1.0, "scale_high": 1.5, "freq_cutoff": 3}),
    "RescaleCFG": ("nodes_model_advanced", {"multiplier": 0.7}),
    "Mahiro": ("nodes_mahiro", {}),
    "CFGZeroStar": ("nodes_cfg", {}),
    "CFGNorm": ("nodes_cfg", {"strength": 0.8}),
}


def neighbour(name):
    import importlib

    module, options = NEIGHBOURS[name]
    node = getattr(importlib.import_module(f"comfy_extras.{module}"), name)
    if hasattr(node, "execute"):
        return lambda model: node.execute(model, **options).args[0]
    return lambda model: node().patch(model, **options)[0]


def plainly_steered(model, cfg=3.0):
    """SAMG by hand, in the paper's words: the scale falls from 1.07 to 0.44 of cfg as the energy rises from least to most."""
    patched = model.clone()

    def steer(args):
        cond, uncond = args["conds_out"]
        energy = (cond - uncond).double().square().mean(1, keepdim=True)
        low, high = (energy.flatten(1).amin(1), energy.flatten(1).amax(1))
        spread = [-1, *[1] * (cond.ndim - 1)]
        share = (energy - low.view(spread)) / (high - low).view(spread)
        scale = 1.07 * cfg - share * (1.07 - 0.44) * cfg
        return [uncond + (scale / cfg).float() * (cond - uncond), uncond]

    patched.set_model_sampler_pre_cfg_function(steer)
    return patched


@pytest.mark.numerics
@pytest.mark.parametrize("family", ["sd15", "wan"])
@pytest.mark.parametrize("order", ["before", "behind"])
@pytest.mark.parametrize("name", NEIGHBOURS)
def test_neighbours_work_with_it_in_either_order(tiny, denoised_seen, samg, name, order, family):
    if family == "wan" and name in ("FreSca", "TCFG"):
        pytest.skip("made for images")
    other, model = neighbour(name), tiny.model(family)

    def together(ours):
        return other(ours(model)) if order == "before" else ours(other(model))

    def first(model):
        return denoised_seen(model, family, steps=1)[0]

    plainly = together(plainly_steered)
    result, expected = first(together(samg)), first(plainly)
    assert_equal_but_for_rounding(result, expected, of_run(first, plainly, expected))
    for alone in (samg(model), other(model)):
        assert (result - first(alone)).abs().max() > 1e-3


def test_presets_are_the_papers_scales(tiny, denoised_seen, samg):
    model = tiny.model("sd3")
    preset = denoised_seen(samg(model, preset="SD1.5 / SDXL paper: 5 to 12"))
    assert all(map(torch.equal, preset, denoised_seen(samg(model, w_min=5.0, w_max=12.0))))


def test_one_end_may_be_given_beside_a_preset(tiny, denoised_seen, samg):
    model = tiny.model("sd3")
    preset = denoised_seen(samg(model, preset="SD3.5 paper: 3 to 7.5", w_min=4.0))
    assert all(map(torch.equal, preset, denoised_seen(samg(model, w_min=4.0, w_max=7.5))))


def test_without_guidance_it_says_so_once(tiny, samg, caplog):
    model = tiny.model("sd3")
    assert torch.equal(tiny.sample(samg(model), "sd3", cfg=1.0), tiny.sample(model, "sd3", cfg=1.0))
    said = [line for line in caplog.messages if "SAMG" in line]
    assert said == [
        "SAMG Spatial Guidance: did nothing. At cfg 1, or without a negative, there is no guidance to change; "
        "raise cfg above 1."
    ]


@pytest.mark.parametrize("guider", ["perp_neg", "dual"])
def test_guiders_it_cannot_help_are_left_alone_and_said(tiny, samg, comfy, caplog, guider):
    from comfy_extras import nodes_custom_sampler, nodes_perpneg

    def sample(model):
        positive, negative = tiny.conditioning("sd3")
        if guider == "perp_neg":
            made = nodes_perpneg.Guider_PerpNeg(model)
            made.set_conds(positive, negative, negative)
            made.set_cfg(3.0, 1.0)
        else:
            made = nodes_custom_sampler.Guider_DualCFG(model)
            made.set_conds(positive, positive, negative)
            made.set_cfg(3.0, 2.0)
        latent = tiny.latent("sd3")
        sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "simple", 2)
        sampler = comfy.samplers.sampler_object("euler")
        return made.sample(comfy.sample.prepare_noise(latent, 0), latent, sampler, sigmas, disable_pbar=True)

    model = tiny.model("sd3")
    assert torch.equal(sample(samg(model)), sample(model))
    (said,) = (line for line in caplog.messages if "SAMG" in line)
    assert "did nothing" in said
    assert ("combines 3 predictions" if guider == "perp_neg" else "never called it") in said


def test_a_range_out_of_order_is_refused(tiny, samg):
    with pytest.raises(ValueError, match=r"SAMG Spatial Guidance: w_min \(8\) must not be above w_max \(2\); swap"):
        samg(tiny.model("sd3"), w_min=8.0, w_max=2.0)


@pytest.mark.parametrize(
    ("given", "both"), [({"w_min": 8.0}, {"w_min": 8.0, "w_max": 8.0}), ({"w_max": 1.0}, {"w_min": 1.0, "w_max": 1.0})]
)
def test_an_end_that_follows_cfg_gives_way_to_the_one_that_is_given(tiny, samg, caplog, given, both):
    """At cfg 3 the others would be 3.2 and 1.3."""
    caplog.set_level("INFO")
    model = tiny.model("sd3")
    found = tiny.sample(samg(model, **given), "sd3", cfg=3.0)
    (value,) = given.values()
    assert f"scales {value:g} to {value:g} at cfg 3" in caplog.text
    assert torch.equal(found, tiny.sample(samg(model, **both), "sd3", cfg=3.0))
    assert not torch.equal(found, tiny.sample(model, "sd3", cfg=3.0))


def test_it_acts_together_with_the_clamps(tiny, denoised_seen, samg):
    from gimbal.core.micrograin import micrograin
    from gimbal.nodes.micrograin import GimbalMicrograin

    options = {"form": "hard", "q_low": 0.1, "q_high": 0.9, "strength": 1.0, "knee": 0.8, "alpha": 2.0}
    model = tiny.model("sd3")
    clamped = GimbalMicrograin.execute(model, start_percent=0.0, end_percent=1.0, **options).args[0]
    guided = denoised_seen(samg(model))[0]
    assert torch.equal(denoised_seen(samg(clamped))[0], micrograin(guided, 0.1, 0.9))
