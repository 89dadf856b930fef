"""Micrograin in ComfyUI's sampling: where it acts, when, in which order, and what it says."""

import logging

import pytest
import torch

NEUTRAL = {
    "form": "hard",
    "q_low": 0.0,
    "q_high": 1.0,
    "strength": 1.0,
    "start_percent": 0.0,
    "end_percent": 1.0,
    "knee": 0.8,
    "alpha": 2.0,
}
LATENT_OPTIONS = {name: value for name, value in NEUTRAL.items() if not name.endswith("_percent")}


@pytest.fixture
def micrograin(comfy):
    from gimbal.nodes.micrograin import GimbalMicrograin

    return lambda model, **changes: GimbalMicrograin.execute(model, **{**NEUTRAL, **changes}).args[0]


@pytest.fixture
def on_latent(comfy):
    from gimbal.nodes.micrograin import GimbalMicrograinLatent

    return lambda latent, **changes: GimbalMicrograinLatent.execute(latent, **{**LATENT_OPTIONS, **changes}).args[0]


@pytest.mark.parametrize("family", ["sd3", "sd15", "wan"])
def test_it_clamps_the_guided_prediction(tiny, denoised_seen, micrograin, family):
    from gimbal.core.micrograin import micrograin as kernel

    model = tiny.model(family)
    plain = denoised_seen(model, family)
    clamped = denoised_seen(micrograin(model, q_low=0.05, q_high=0.95), family)
    assert torch.equal(clamped[0], kernel(plain[0], 0.05, 0.95))  # steps after the first start from another x


def test_neutral_quantiles_are_bit_exact(tiny, micrograin):
    model = tiny.model("sd3")
    assert torch.equal(tiny.sample(micrograin(model), "sd3"), tiny.sample(model, "sd3"))


def test_strength_blends(tiny, denoised_seen, micrograin):
    model = tiny.model("sd3")
    plain, half, full = (
        denoised_seen(patched, "sd3")[0]
        for patched in (
            model,
            micrograin(model, q_low=0.1, q_high=0.9, strength=0.5),
            micrograin(model, q_low=0.1, q_high=0.9),
        )
    )
    torch.testing.assert_close(half, (plain + full) / 2)
    assert not torch.equal(half, full)


@pytest.mark.parametrize("family", ["sd3", "sd15"])
def test_window_chooses_the_steps(tiny, micrograin, comfy, caplog, family):
    model = tiny.model(family)
    sampling = model.get_model_object("model_sampling")
    sigmas = comfy.samplers.calculate_sigmas(sampling, "simple", 6)[:-1]
    start, end = 0.3, 0.7
    inside = [sampling.percent_to_sigma(end) <= sigma <= sampling.percent_to_sigma(start) for sigma in sigmas]
    assert any(inside) and not all(inside)
    caplog.set_level(logging.INFO)
    tiny.sample(micrograin(model, q_low=0.1, q_high=0.9, start_percent=start, end_percent=end), family, steps=6)
    assert f"Micrograin (QSilk): acted on {sum(inside)} of 6 model calls (hard, quantiles 0.1 to 0.9" in caplog.text


def test_a_window_that_no_step_meets_is_said(tiny, micrograin, caplog):
    model = tiny.model("sd3")
    outside = micrograin(model, q_low=0.1, q_high=0.9, start_percent=0.999, end_percent=0.9995)
    assert torch.equal(tiny.sample(outside, "sd3"), tiny.sample(model, "sd3"))
    assert "Micrograin (QSilk): did nothing. None of this run's 3 model calls lies between" in caplog.text


def test_reversed_window_is_refused(tiny, micrograin):
    with pytest.raises(ValueError, match=r"Micrograin \(QSilk\): start_percent \(0.8\).*above end_percent \(0.2\)"):
        micrograin(tiny.model("sd3"), start_percent=0.8, end_percent=0.2)


def test_nodes_act_in_the_order_of_the_graph(tiny, denoised_seen, micrograin):
    from gimbal.core.micrograin import micrograin as kernel

    model = tiny.model("sd3")
    plain = denoised_seen(model, "sd3")[0]
    chain = micrograin(micrograin(model, form="tanh", q_low=0.1, q_high=0.9), q_low=0.3, q_high=0.7)
    expected = kernel(kernel(plain, 0.1, 0.9, "tanh"), 0.3, 0.7)
    assert torch.equal(denoised_seen(chain, "sd3")[0], expected)
    assert not torch.equal(expected, kernel(kernel(plain, 0.3, 0.7), 0.1, 0.9, "tanh"))


def test_sampling_patches_after_it_count(tiny, micrograin, caplog):
    """A shift set after our node moves the window: percent is resolved when sampling, not when patching."""
    from comfy_extras.nodes_model_advanced import ModelSamplingSD3

    caplog.set_level(logging.INFO)
    windowed = micrograin(tiny.model("sd3"), q_low=0.1, q_high=0.9, end_percent=0.5)
    tiny.sample(windowed, "sd3", steps=10, scheduler="normal")
    shifted = ModelSamplingSD3().patch(windowed, 12.0)[0]
    tiny.sample(shifted, "sd3", steps=10, scheduler="normal")
    before, after = (line for line in caplog.messages if "acted on" in line)
    sampling = shifted.get_model_object("model_sampling")
    import comfy.samplers

    sigmas = comfy.samplers.calculate_sigmas(sampling, "normal", 10)[:-1]
    expected = sum(float(sigma) >= sampling.percent_to_sigma(0.5) for sigma in sigmas)
    assert f"acted on {expected} of 10" in after
    assert "of 10 model calls" in before


def test_guiders_that_skip_post_cfg_functions_are_reached(tiny, micrograin, comfy):
    """Perp-Neg and the like override predict_noise: the wrapper still sees their final prediction."""
    from gimbal.core.micrograin import micrograin as kernel

    class OwnGuidance(comfy.samplers.CFGGuider):
        def predict_noise(self, x, timestep, model_options=None, seed=None):
            return super().predict_noise(x, timestep, model_options, seed) * 1.5

    def first_denoised(model):
        guider = OwnGuidance(model)
        guider.set_conds(*tiny.conditioning("sd3"))
        guider.set_cfg(3.0)
        seen = []
        latent = tiny.latent("sd3")
        sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "simple", 2)
        noise = comfy.sample.prepare_noise(latent, 0)
        guider.sample(
            noise,
            latent,
            comfy.samplers.sampler_object("euler"),
            sigmas,
            callback=lambda step, denoised, x, total: seen.append(denoised.clone()),
            disable_pbar=True,
        )
        return seen[0]

    model = tiny.model("sd3")
    clamped = first_denoised(micrograin(model, q_low=0.1, q_high=0.9))
    assert torch.equal(clamped, kernel(first_denoised(model), 0.1, 0.9))


def test_inpainting_keeps_the_kept_region(tiny, micrograin):
    mask = torch.zeros(1, 16, 16)
    mask[:, :, 8:] = 1
    image = torch.randn(tiny.latent("sd3").shape, generator=torch.Generator().manual_seed(2))
    patched = micrograin(tiny.model("sd3"), q_low=0.1, q_high=0.9)
    result = tiny.sample(patched, "sd3", latent=image, noise_mask=mask, denoise=0.7)
    plain = tiny.sample(tiny.model("sd3"), "sd3", latent=image, noise_mask=mask, denoise=0.7)
    torch.testing.assert_close(result[..., :8], image[..., :8])
    assert not torch.equal(result[..., 8:], plain[..., 8:])


def test_nan_is_said_once_and_stays_where_it_is(tiny, denoised_seen, micrograin, caplog):
    def spoil(args):
        denoised = args["denoised"].clone()
        denoised[1, 0, 0, 0] = float("nan")
        return denoised

    model = tiny.model("sd3")
    model.set_model_sampler_post_cfg_function(spoil)
    patched = micrograin(model, q_low=0.1, q_high=0.9)
    seen = denoised_seen(patched, "sd3", latent=tiny.latent("sd3", batch=2), steps=1)[0]
    assert seen.isnan().sum() == 1 and seen[1, 0, 0, 0].isnan()
    warnings = [line for line in caplog.messages if "NaN" in line]
    assert len(warnings) == 1
    assert warnings[0].startswith("Micrograin (QSilk): the model's prediction held NaN or infinity in sample 1 of")


def test_latent_node_clamps_and_keeps_the_rest(on_latent):
    from gimbal.core.micrograin import micrograin as kernel

    samples = torch.randn(2, 16, 12, 10, generator=torch.Generator().manual_seed(0))
    latent = {"samples": samples, "noise_mask": torch.ones(1, 12, 10), "batch_index": [0, 1]}
    result = on_latent(latent, q_low=0.1, q_high=0.9)
    assert torch.equal(result["samples"], kernel(samples, 0.1, 0.9))
    assert result["noise_mask"] is latent["noise_mask"] and result["batch_index"] == [0, 1]
    assert latent["samples"] is samples  # ComfyUI caches inputs: they must not change
    assert on_latent(latent, strength=0.0) is latent


def test_latent_node_says_infinity(on_latent, caplog):
    samples = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    samples[0, 0, 0, 0] = float("inf")
    result = on_latent({"samples": samples}, q_low=0.05, q_high=0.95)
    assert result["samples"].isfinite().all()
    assert "Micrograin on Latent (QSilk): the latent held NaN or infinity in sample 0 of the batch" in caplog.text


def test_latent_node_says_what_it_did(on_latent, caplog):
    samples = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    with caplog.at_level("INFO"):
        on_latent({"samples": samples}, strength=0.0)
        assert not caplog.text
        on_latent({"samples": samples})
    assert caplog.text.count("Micrograin on Latent (QSilk): acted on the latent (hard") == 1


def test_latent_of_several_parts_passes_and_is_said(on_latent, comfy, caplog):
    nested = pytest.importorskip("comfy.nested_tensor", reason="this ComfyUI has no nested latents yet")
    latent = {"samples": nested.NestedTensor([torch.randn(1, 16, 2, 4, 4), torch.randn(1, 8, 16)])}
    assert on_latent(latent, q_low=0.1, q_high=0.9) is latent
    assert "Micrograin on Latent (QSilk): did nothing" in caplog.text


def test_it_acts_in_a_sampling_loop_of_another_packs_own(tiny, micrograin, comfy):
    """No OUTER_SAMPLE, no run to remember anything: only the guider is asked for predictions."""
    from gimbal.core.micrograin import micrograin as kernel

    def predict(model):
        guider = comfy.samplers.CFGGuider(model)
        guider.set_conds(*tiny.conditioning("sd3"))
        guider.set_cfg(3.0)
        x = torch.randn(tiny.latent("sd3").shape, generator=torch.Generator().manual_seed(0))
        result = []

        def sampler_function(model, noisy, sigmas, extra_args=None, callback=None, disable=None):
            result.append(model(noisy, sigmas[:1], **extra_args))
            return noisy

        sampler = comfy.samplers.KSAMPLER(sampler_function)
        guider.conds = {name: [entry.copy() for entry in conds] for name, conds in guider.original_conds.items()}
        prepared = comfy.sampler_helpers.prepare_sampling(model, x.shape, guider.conds, guider.model_options)
        guider.inner_model, guider.conds, guider.loaded_models = prepared
        comfy.sampler_helpers.prepare_model_patcher(model, guider.conds, guider.model_options)
        model.pre_run()
        guider.inner_sample(x, torch.zeros_like(x), x.device, sampler, torch.tensor([0.9, 0.0]), None, None, True, 0)
        model.cleanup()
        return result[0]

    model = tiny.model("sd3")
    plain = predict(model)
    assert torch.equal(predict(micrograin(model, q_low=0.1, q_high=0.9)), kernel(plain, 0.1, 0.9))
