"""The Q-Drift nodes in ComfyUI's sampling: what they compute, what they leave alone, what they say."""

import logging
import sys

import pytest
import torch
from rounding import assert_equal_but_for_rounding, of_run

OPTIONS = {
    "correction": "drift",
    "strength": 1.0,
    "channels": "channel",
    "rule": "auto",
    "variance": "conditional",
    "bias": "off",
    "unsupported": "stop with an error",
    "start_percent": 0.0,
    "end_percent": 1.0,
}
DETERMINISTIC = ["euler", "ddim", "dpmpp_2m", "deis", "ipndm", "ipndm_v", "lms", "res_multistep"]
DETERMINISTIC += ["gradient_estimation", "heun", "dpm_2"]


@pytest.fixture
def statistics(tiny):
    return sys.modules["tiny_models"].statistics


@pytest.fixture
def drift(comfy):
    from gimbal.nodes.qdrift import GimbalQDrift

    return lambda model, stats, **changes: GimbalQDrift.execute(model, stats, **{**OPTIONS, **changes}).args[0]


@pytest.fixture
def rounding_of(tiny):
    """`rounding_of(model, family, **options)`: what rounding does to a run of the plain model."""

    def rounding_of(model, family, plain=None, **options):
        return of_run(lambda each: tiny.sample(each, family, **options), model, plain)

    return rounding_of


def with_sampler(model, function):
    """The model with a sampler function of the test's own under whatever sampler is chosen."""
    import comfy.samplers
    from comfy.patcher_extension import WrappersMP

    def outer(executor, noise, latent, sampler, *args, **kwargs):
        own = comfy.samplers.KSAMPLER(function, {}, dict(sampler.inpaint_options))
        return executor(noise, latent, own, *args, **kwargs)

    patched = model.clone()
    patched.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, "test", outer)
    return patched


def euler_by_hand(gain_at, marginal=False):
    """Eq. 23, or its like in y = x / (1 - sigma): x and denoised alone, one step after the other."""

    def function(model, x, sigmas, extra_args, callback, disable):
        for i in range(len(sigmas) - 1):
            start, end = float(sigmas[i]), float(sigmas[i + 1])
            denoised = model(x, x.new_full((len(x),), start), **extra_args)
            c = gain_at(start, end).to(x).view(1, -1, *[1] * (x.ndim - 2))
            if not marginal:
                x = x + (end - start) * (1 + c) * (x - denoised) / start
            elif start < 1:
                noise = (x - (1 - start) * denoised) / start
                y = x / (1 - start) + (end / (1 - end) - start / (1 - start)) * (1 + c) * noise
                x = (1 - end) * y
            else:
                x = x + (end - start) * (x - denoised)
        return x

    return function


@pytest.mark.numerics
@pytest.mark.parametrize("family", ["sd15", "sd15_v"])
def test_euler_is_eq_23(tiny, rounding_of, drift, statistics, family):
    model = tiny.model(family)
    stats = statistics(model)
    by_hand = euler_by_hand(lambda start, end: (start - end) / (2 * start) * stats.variance(start))
    expected = tiny.sample(with_sampler(model, by_hand), family, steps=6)
    result = tiny.sample(drift(model, stats), family, steps=6)
    assert_equal_but_for_rounding(result, expected, rounding_of(model, family, steps=6))
    plain = tiny.sample(model, family, steps=6)
    assert (result - plain).abs().max() > 1e-2 * plain.abs().max()


@pytest.mark.numerics
@pytest.mark.parametrize("family", ["sd3", "wan"])
def test_flow_euler_lengthens_the_noise_not_the_velocity(tiny, rounding_of, drift, statistics, family):
    model = tiny.model(family)
    stats = statistics(model)

    def gain(start, end):
        if start == 1.0:
            return torch.zeros(1)
        bars = [s / (1 - s) for s in (start, end)]
        weight = bars[0] - bars[1]
        return weight**2 * (1 - start) ** 2 * stats.variance(start) / abs(bars[0] ** 2 - bars[1] ** 2)

    expected = tiny.sample(with_sampler(model, euler_by_hand(gain, marginal=True)), family, steps=6)
    result = tiny.sample(drift(model, stats), family, steps=6)
    assert_equal_but_for_rounding(result, expected, rounding_of(model, family, steps=6))


@pytest.mark.numerics
def test_the_papers_flow_rule_is_eq_27(tiny, rounding_of, drift, statistics):
    model = tiny.model("sd3")
    stats = statistics(model)
    by_hand = euler_by_hand(lambda start, end: (start - end) / (2 * start) * stats.variance(start))
    expected = tiny.sample(with_sampler(model, by_hand), "sd3", steps=6)
    result = tiny.sample(drift(model, stats, rule="paper"), "sd3", steps=6)
    assert_equal_but_for_rounding(result, expected, rounding_of(model, "sd3", steps=6))


@pytest.mark.parametrize("family", ["sd15", pytest.param("sd3", marks=pytest.mark.numerics)])
@pytest.mark.parametrize("sampler", DETERMINISTIC)
def test_without_error_every_sampler_is_itself(tiny, rounding_of, drift, statistics, family, sampler):
    model = tiny.model(family)
    plain = tiny.sample(model, family, steps=6, sampler=sampler)
    result = tiny.sample(drift(model, statistics(model, spread=0.0)), family, steps=6, sampler=sampler)
    assert_equal_but_for_rounding(result, plain, rounding_of(model, family, plain, steps=6, sampler=sampler))


@pytest.mark.numerics
@pytest.mark.parametrize("sampler", ["euler", "dpmpp_2m", "heun", "euler_ancestral"])
def test_the_sampler_node_gives_the_same(tiny, comfy, drift, statistics, sampler):
    from comfy_extras.nodes_custom_sampler import SamplerCustom

    from gimbal.nodes.qdrift import GimbalQDriftSampler

    model = tiny.model("sd15")
    stats = statistics(model)
    latent = tiny.latent("sd15")
    sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "simple", 5)
    expected = tiny.sample(drift(model, stats), "sd15", steps=5, sampler=sampler, seed=4)
    made = GimbalQDriftSampler.execute(stats, sampler, **OPTIONS).args[0]
    run = getattr(SamplerCustom, "execute", None) or SamplerCustom().sample
    result = run(model, True, 4, 3.0, *tiny.conditioning("sd15"), made, sigmas, {"samples": latent})
    output = (result.args if hasattr(result, "args") else result)[0]["samples"]
    assert torch.equal(output, expected)
    neutral = GimbalQDriftSampler.execute(stats, sampler, **{**OPTIONS, "strength": 0.0}).args[0]
    assert neutral.sampler_function is comfy.samplers.sampler_object(sampler).sampler_function


def test_it_says_what_it_did_once(tiny, drift, statistics, caplog):
    caplog.set_level(logging.INFO)
    model = tiny.model("sd15")
    tiny.sample(drift(model, statistics(model)), "sd15", sampler="dpmpp_2m", steps=5)
    (said,) = (line for line in caplog.messages if line.startswith("Quantization Fix (Q-Drift)"))
    assert "dpmpp_2m, path ve" in said and "5 steps, c " in said


@pytest.mark.parametrize("sampler", ["uni_pc", "dpm_adaptive", "dpmpp_2m_sde", "lcm"])
def test_samplers_without_a_corrected_form(tiny, drift, statistics, caplog, sampler):
    family = "sd3" if sampler == "dpm_adaptive" else "sd15"  # it takes hundreds of calls, so the smaller network
    model = tiny.model(family)
    stats = statistics(model)
    with pytest.raises(
        ValueError, match=r"Quantization Fix \(Q-Drift\): .*Choose another sampler .* or set 'unsupported' to"
    ) as refusal:
        tiny.sample(drift(model, stats), family, sampler=sampler)
    assert "Error" not in str(refusal.value)
    caplog.set_level(logging.INFO)
    result = tiny.sample(drift(model, stats, unsupported="correct each call"), family, sampler=sampler)
    assert "each call by itself" in caplog.text and "left the bias correction out" not in caplog.text
    plain = tiny.sample(model, family, sampler=sampler)
    assert result.isfinite().all() and (result - plain).abs().max() > 1e-3 * plain.abs().max()


@pytest.mark.parametrize(
    ("family", "rule"),
    [
        *[("sd15", rule) for rule in ("auto", "marginal")],
        *[("sd3", rule) for rule in ("auto", "marginal", "paper")],
        ("wan", "auto"),
    ],
)
def test_a_call_corrected_by_itself_is_an_euler_step(tiny, comfy, drift, statistics, family, rule):
    """Under Euler itself both ways are one, gains and all: on flow the marginal rule's."""
    model = tiny.model(family)
    stats = statistics(model, spread=0.05)
    stock = comfy.k_diffusion.sampling.sample_euler

    def opaque(wrapped, x, sigmas, extra_args, callback, disable):
        assert wrapped.inner_model.inner_model is not None  # what no stand-in has: Euler can no longer be read
        return stock(wrapped, x, sigmas, extra_args, callback, disable)

    def sample(patched):
        return tiny.sample(patched, family, steps=6)

    exact, plain = sample(drift(model, stats, rule=rule)), sample(model)
    single = sample(drift(with_sampler(model, opaque), stats, rule=rule, unsupported="correct each call"))
    assert (single - exact).norm() < 1e-3 * (plain - exact).norm()
    assert (plain - exact).norm() > 1e-4 * plain.norm()


@pytest.mark.parametrize(("sigma", "sigma_next"), [(0.9, 0.7), (0.5, 0.1), (0.2, 0.0)])
def test_the_gain_of_a_single_call_is_the_marginal_rules(comfy, sigma, sigma_next):
    """By hand: w = 1/(1 - s') s' - s/(1 - s), c = w^2 (1 - s)^2 V / |sb^2 - sb'^2|; and as a plan of Euler has it."""
    from gimbal.core.plan import make_plan
    from gimbal.host.per_call import PerCallCorrector

    sigmas = torch.tensor([sigma, sigma_next]).double()
    found = PerCallCorrector(None, sigmas, "flow", "auto", lambda _: torch.tensor([0.2]), 1.0).gain(sigma, sigma_next)
    bar, bar_next = sigma / (1 - sigma), sigma_next / (1 - sigma_next)
    assert found.item() == pytest.approx((bar - bar_next) * (1 - sigma) ** 2 * 0.2 / (bar + bar_next), rel=1e-6)
    plan = make_plan("euler", sigmas, path="flow", rule="marginal", variance=lambda _: torch.tensor([0.2]))
    assert found.item() == pytest.approx(plan.gains.item(), rel=1e-6)


def test_statistics_of_another_model_are_refused(tiny, drift, statistics):
    for family, other, what in (
        ("sd3", "sd15", "path ve, this one has flow"),
        ("sd3", "hunyuan_image", "number of latent channels 64, this one has 16"),
        ("flux", "sd3", "latent format SD3, this one has Flux"),
    ):
        with pytest.raises(
            ValueError, match=rf"Quantization Fix \(Q-Drift\): the statistics are of another model: {what}; load"
        ):
            tiny.sample(drift(tiny.model(family), statistics(tiny.model(other))), family)


def test_other_weights_than_the_calibrations_are_said_and_full_precision_is_refused(tiny, drift, statistics, caplog):
    from gimbal.host.identity import weights_digest

    model = tiny.model("sd15")
    digest = weights_digest(model)
    tiny.sample(drift(model, statistics(model, quantized_digest=digest, full_digest="aa")), "sd15")
    assert not [line for line in caplog.messages if "other weights" in line]
    tiny.sample(drift(model, statistics(model, quantized_digest="bb", full_digest="aa")), "sd15")
    (said,) = [line for line in caplog.messages if "not as calibrated" in line]
    assert "other weights (another file, number format or LoRA)" in said
    with pytest.raises(
        ValueError, match=r"Quantization Fix .*: model is the full-precision model .*; connect the quantized"
    ):
        drift(model, statistics(model, quantized_digest="bb", full_digest=digest))


def test_other_settings_than_the_calibrations_are_said_once(tiny, drift, statistics, caplog):
    model = tiny.model("sd15")
    from gimbal.host.identity import quantization

    weights = quantization(model)
    assert weights.startswith("float32 100 % in ")
    other = {"solver": "dpmpp_2m", "device": "cuda:0 Some GPU", "quantization": "GGUF Q4_0 99 % in 90 tensors"}
    tiny.sample(drift(model, statistics(model, cfg=5.0, **other)), "sd15", cfg=3.0, sampler="euler")
    said = [line for line in caplog.messages if "not as calibrated" in line]
    assert said == [
        "Quantization Fix (Q-Drift): not as calibrated: cfg 3 instead of 5; sampler euler instead of dpmpp_2m; "
        f"device cpu instead of cuda:0 Some GPU; weights {weights} instead of GGUF Q4_0 99 % in 90 tensors. "
        "The statistics may fit less well."
    ]
    caplog.clear()
    same = {"solver": "euler", "device": "cpu", "quantization": weights}
    tiny.sample(drift(model, statistics(model, cfg=3.0, **same)), "sd15", cfg=3.0, sampler="euler")
    assert not [line for line in caplog.messages if "Q-Drift" in line]


def test_two_corrections_are_refused(tiny, comfy, drift, statistics):
    from gimbal.nodes.qdrift import GimbalQDriftSampler

    model = tiny.model("sd15")
    stats = statistics(model)
    patched = drift(model, stats)
    with pytest.raises(ValueError, match="carries a corrected sampler already; remove one"):
        drift(patched, stats)
    sampler = GimbalQDriftSampler.execute(stats, "euler", **OPTIONS).args[0]
    sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "simple", 3)
    latent = tiny.latent("sd15")
    with pytest.raises(ValueError, match="corrected already; use Quantization Fix or its sampler"):
        comfy.sample.sample_custom(
            patched, latent, 3.0, sampler, sigmas, *tiny.conditioning("sd15"), latent, disable_pbar=True
        )


@pytest.mark.numerics
@pytest.mark.parametrize("family", ["sd15", "sd3"])
@pytest.mark.parametrize("sampler", ["euler", "dpmpp_2m"])
def test_inpainting_keeps_the_kept_region(tiny, rounding_of, drift, statistics, family, sampler):
    model = tiny.model(family)
    latent = torch.randn(tiny.latent(family).shape, generator=torch.Generator().manual_seed(2))
    mask = torch.zeros(1, 1, 16, 16)
    mask[..., 8:] = 1.0
    options = {"latent": latent, "noise_mask": mask, "denoise": 0.7, "sampler": sampler, "steps": 5}
    plain = tiny.sample(model, family, **options)
    result = tiny.sample(drift(model, statistics(model)), family, **options)
    # Euler's last step rounds, ComfyUI's own as well: (x - denoised) / sigma * sigma.
    own = rounding_of(model, family, plain, **options)
    assert_equal_but_for_rounding(result[..., :8], plain[..., :8], own)
    assert_equal_but_for_rounding(result[..., :8], latent[..., :8], own)
    assert not torch.allclose(result[..., 8:], plain[..., 8:], atol=1e-3)


@pytest.mark.numerics
@pytest.mark.parametrize("family", ["sd15", "sd3"])
@pytest.mark.parametrize("sampler", ["uni_pc", "dpmpp_2m_sde", "lcm"])
def test_single_calls_keep_the_kept_region(tiny, rounding_of, drift, statistics, family, sampler):
    model = tiny.model(family)
    latent = torch.randn(tiny.latent(family).shape, generator=torch.Generator().manual_seed(2))
    mask = torch.zeros(1, 1, 16, 16)
    mask[..., 8:] = 1.0
    options = {"latent": latent, "noise_mask": mask, "denoise": 0.7, "sampler": sampler, "steps": 5}
    plain = tiny.sample(model, family, **options)
    result = tiny.sample(drift(model, statistics(model), unsupported="correct each call"), family, **options)
    own = rounding_of(model, family, plain, **options)
    assert_equal_but_for_rounding(result[..., :8], plain[..., :8], own)
    assert not torch.allclose(result[..., 8:], plain[..., 8:], atol=1e-3)


@pytest.mark.numerics
def test_single_calls_keep_to_a_mask_that_changes_with_sigma(tiny, rounding_of, drift, statistics):
    """Differential diffusion: places of a gray mask are kept until their time comes."""
    model = tiny.model("sd15")
    latent = torch.randn(tiny.latent("sd15").shape, generator=torch.Generator().manual_seed(2))
    mask = torch.full((1, 1, 16, 16), 0.5)
    mask[..., :8] = 0.0

    def early(sigma, denoise_mask, extra_options):
        assert len(extra_options["sigmas"]) == 6 and hasattr(extra_options["model"], "inner_model")
        return (
            (denoise_mask > 0.4).to(denoise_mask)
            if float(sigma.flatten()[0]) > 1.0
            else torch.zeros_like(denoise_mask)
        )

    model = model.clone()
    model.set_model_denoise_mask_function(early)
    options = {"latent": latent, "noise_mask": mask, "sampler": "dpmpp_2m_sde", "steps": 5}
    result = tiny.sample(drift(model, statistics(model), unsupported="correct each call"), "sd15", **options)
    # the last call is kept everywhere, and the sampler ends at what it was given
    plain = tiny.sample(model, "sd15", **options)
    assert_equal_but_for_rounding(result, plain, rounding_of(model, "sd15", plain, **options))


@pytest.mark.numerics
@pytest.mark.parametrize("sampler", ["euler", "dpmpp_2m", "heun"])
def test_partial_schedules_and_callbacks_are_comfyuis(tiny, rounding_of, drift, statistics, sampler):
    model = tiny.model("sd15")
    for options in (
        {"start_step": 2, "last_step": 5},
        {"denoise": 0.5},
        {"start_step": 3, "force_full_denoise": True},
    ):
        places = []

        def seen(model, options=options, places=places):
            """Predictions and latents that a preview gets, step by step."""
            calls = []
            tiny.sample(model, "sd15", steps=6, sampler=sampler, callback=lambda *call: calls.append(call), **options)
            places.append([call[0::3] for call in calls])
            return torch.stack([torch.stack(call[1:3]) for call in calls])

        plain, ours = seen(model), seen(drift(model, statistics(model, spread=0.0)))
        assert places[0] == places[1]
        assert_equal_but_for_rounding(ours, plain, of_run(seen, model, plain))


@pytest.mark.numerics
def test_window_chooses_the_steps(tiny, rounding_of, drift, statistics):
    model = tiny.model("sd15")
    stats = statistics(model)
    whole = tiny.sample(drift(model, stats), "sd15", steps=6)
    plain = tiny.sample(model, "sd15", steps=6)
    late = tiny.sample(drift(model, stats, start_percent=0.5), "sd15", steps=6)
    never = tiny.sample(drift(model, stats, start_percent=0.9995), "sd15", steps=6)
    assert_equal_but_for_rounding(never, plain, rounding_of(model, "sd15", plain, steps=6))
    assert 0 < (late - plain).norm() < (whole - plain).norm()


def test_it_works_beside_the_stages(tiny, denoised_seen, drift, statistics):
    """Clamps change what the sampler sees; the correction acts on that."""
    from gimbal.nodes.micrograin import GimbalMicrograin

    options = {"form": "hard", "q_low": 0.1, "q_high": 0.9, "strength": 1.0, "knee": 0.8, "alpha": 2.0}
    model = tiny.model("sd3")
    stats = statistics(model)

    def clamp(m):
        return GimbalMicrograin.execute(m, start_percent=0.0, end_percent=1.0, **options).args[0]

    one, other = denoised_seen(drift(clamp(model), stats)), denoised_seen(clamp(drift(model, stats)))
    assert all(map(torch.equal, one, other))
    assert torch.equal(one[0], denoised_seen(clamp(model))[0])


@pytest.mark.numerics
def test_bias_takes_off_what_the_statistics_expect(tiny, rounding_of, drift, statistics):
    """Deterministic: known by hand for Euler. Stochastic: of the seed, and not the same."""
    model = tiny.model("sd15")
    stats = statistics(model, spread=1e-4)  # slope 0.1, next to no variance

    def by_hand(wrapped, x, sigmas, extra_args, callback, disable):
        for i in range(len(sigmas) - 1):
            start, end = float(sigmas[i]), float(sigmas[i + 1])
            denoised = wrapped(x, x.new_full((len(x),), start), **extra_args)
            eps = (x - denoised) / start
            slope, intercept = (f(start).view(1, -1, 1, 1) for f in (stats.slope, stats.intercept))
            x = x + (end - start) * (eps - slope * eps - intercept)
        return x

    expected = tiny.sample(with_sampler(model, by_hand), "sd15", steps=4)
    result = tiny.sample(drift(model, stats, bias="deterministic"), "sd15", steps=4)
    own = rounding_of(model, "sd15", steps=4)
    assert_equal_but_for_rounding(result, expected, own)
    outside = drift(model, stats, bias="deterministic", start_percent=0.9995)
    plain = tiny.sample(model, "sd15", steps=4)
    assert_equal_but_for_rounding(tiny.sample(outside, "sd15", steps=4), plain, own)
    noisy = drift(model, statistics(model), bias="stochastic")
    first, again, other = (tiny.sample(noisy, "sd15", seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_bias_takes_the_place_of_the_gain(tiny, drift, statistics, caplog):
    """By itself under drift, of each channel whatever `channels` is, and its variance once under stochastic."""
    caplog.set_level(logging.INFO)
    model = tiny.model("sd15")
    stats = statistics(model)
    for bias in ("deterministic", "stochastic"):
        results = [
            tiny.sample(drift(model, stats, bias=bias, channels=channels, variance=variance), "sd15", seed=3)
            for channels, variance in (
                ("channel", "conditional"),
                ("scalar", "conditional"),
                ("scalar", "unconditional"),
            )
        ]
        assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])
        assert f"steps; bias correction {bias}" in caplog.messages[-1] and ", c " not in caplog.messages[-1]


@pytest.mark.parametrize("bias", ["deterministic", "stochastic"])
def test_bias_works_beside_moments(tiny, drift, statistics, bias):
    from dataclasses import replace

    model = tiny.model("sd15")
    levels = torch.tensor([5.0, 1.0, 0.0]).double()
    parts = {
        name: torch.full((3, 4), value)
        for name, value in (
            ("state_scale", 1.1),
            ("state_shift", 0.0),
            ("state_scale_drift", 5.0),
            ("state_shift_drift", 0.0),
        )
    }
    stats = replace(statistics(model), state_sigma=levels, **parts)
    alone = tiny.sample(drift(model, stats, bias=bias), "sd15", seed=3)
    moments, both = (
        tiny.sample(drift(model, stats, correction=correction, bias=bias), "sd15", seed=3)
        for correction in ("moments", "both")
    )
    assert moments.isfinite().all() and not torch.allclose(moments, alone)
    assert torch.equal(moments, both)  # the maps that were found without the gain


def test_bias_that_cannot_be_corrected_is_said(tiny, drift, statistics, caplog):
    model = tiny.model("sd15")
    patched = drift(model, statistics(model), bias="deterministic", unsupported="correct each call")
    tiny.sample(patched, "sd15", sampler="uni_pc")
    assert "Quantization Fix (Q-Drift): left the bias correction out" in caplog.text
