"""Plans against ComfyUI's own samplers, on real (tiny) models, through the wrapper that a node will use."""

import pytest
import torch
from rounding import assert_equal_but_for_rounding, of_run

from gimbal.core.coefficients import read_coefficients
from gimbal.core.plan import make_plan
from gimbal.core.solvers import SOLVERS, run, sample

DETERMINISTIC = [
    "euler",
    "ddim",
    "dpmpp_2m",
    "deis",
    "ipndm",
    "ipndm_v",
    "lms",
    "res_multistep",
    "gradient_estimation",
    "heun",
    "heunpp2",
    "dpm_2",
]
REFUSED = {
    "dpm_2_ancestral": "adds random noise",
    "dpmpp_2s_ancestral": "adds random noise",
    "dpmpp_2m_sde": "adds random noise",
    "dpmpp_3m_sde": "adds random noise",
    "ddpm": "adds random noise",
    "lcm": "adds random noise",
    "res_multistep_ancestral": "adds random noise",
    "er_sde": "adds random noise",
    "sa_solver": "adds random noise",
    "uni_pc": "cannot be read outside a real run",
    "euler_cfg_pp": "cannot be read outside a real run",
    "dpmpp_2m_cfg_pp": "cannot be read outside a real run",
    "dpm_adaptive": "chooses its model calls by what the model returns",
    "dpm_fast": "does not begin its steps at the schedule's sigmas",
}
FAMILIES = ["sd15", pytest.param("sd3", marks=pytest.mark.numerics)]  # the smaller one under lesser kernels too


@pytest.fixture
def planned(comfy):
    """`planned(model, **options)`: the model with its sampler exchanged for a plan, when sampling starts."""
    import comfy.model_sampling
    import comfy.samplers
    from comfy.patcher_extension import WrappersMP

    def planned(model, solver=None, plans=None, **options):
        def outer(executor, noise, latent_image, sampler, sigmas, *args, **kwargs):
            sampling = executor.class_obj.model_patcher.get_model_object("model_sampling")
            path = "flow" if isinstance(sampling, comfy.model_sampling.CONST) else "ve"
            plan = make_plan(
                solver or sampler.sampler_function,
                sigmas,
                path=path,
                options=dict(sampler.extra_options),
                model_sampling=sampling,
                **options,
            )
            if plans is not None:
                plans.append(plan)

            def corrected(model, x, sigmas, extra_args=None, callback=None, disable=None):
                return run(
                    plan,
                    lambda x, sigma: model(x, sigma, **extra_args),
                    x,
                    callback=callback,
                    mask=extra_args.get("denoise_mask"),
                    noise_sampler=comfy.k_diffusion.sampling.default_noise_sampler(x, seed=extra_args.get("seed")),
                )

            replaced = comfy.samplers.KSAMPLER(corrected, {}, dict(sampler.inpaint_options))
            return executor(noise, latent_image, replaced, sigmas, *args, **kwargs)

        patched = model.clone()
        patched.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, "test", outer)
        return patched

    return planned


def relative(found, expected):
    return ((found - expected).norm() / expected.norm()).item()


def assert_same_but_for_rounding(tiny, family, ours, **options):
    """Of the plain model: the run, and what rounding does to it."""

    def run(model):
        return tiny.sample(model, family, **options)

    plain = run(tiny.model(family))
    own = of_run(run, tiny.model(family), plain)
    assert_equal_but_for_rounding(run(ours), plain, own)
    return plain, own


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("sampler", DETERMINISTIC)
def test_without_gain_a_plan_is_comfyuis_sampler(tiny, planned, sampler, family):
    model = tiny.model(family)
    channels = tiny.latent(family).shape[1]
    zero = planned(model, variance=lambda sigma: torch.zeros(channels))
    assert_same_but_for_rounding(tiny, family, zero, sampler=sampler, steps=8)


@pytest.mark.parametrize("family", FAMILIES)
def test_with_gain_it_is_another_image(tiny, planned, family):
    model, plans = tiny.model(family), []
    options = {"sampler": "dpmpp_2m", "steps": 8}
    patched = planned(model, variance=lambda sigma: torch.tensor(0.1), plans=plans)
    change = relative(tiny.sample(patched, family, **options), tiny.sample(model, family, **options))
    assert 1e-3 < change < 1.0
    assert plans[0].name == "dpmpp_2m" and plans[0].gains.max() > 0.01


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("sampler", ["euler", "dpmpp_2m", "heun"])
@pytest.mark.parametrize("part", [{"denoise": 0.6}, {"start_step": 2}, {"last_step": 5, "force_full_denoise": False}])
def test_parts_of_schedules(tiny, planned, sampler, family, part):
    model = tiny.model(family)
    latent = torch.randn(tiny.latent(family).shape, generator=torch.Generator().manual_seed(2))
    options = {"sampler": sampler, "steps": 7, "latent": latent, **part}
    assert_same_but_for_rounding(tiny, family, planned(model), **options)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("sampler", ["euler", "ddim", "dpmpp_2m"])
def test_kept_places_stay_as_they_are(tiny, planned, sampler, family):
    model = tiny.model(family)
    latent = torch.randn(tiny.latent(family).shape, generator=torch.Generator().manual_seed(2))
    mask = torch.zeros(1, 1, *latent.shape[-2:])
    mask[..., : latent.shape[-1] // 2] = 1.0
    options = {"sampler": sampler, "steps": 6, "latent": latent, "noise_mask": mask}
    plain, own = assert_same_but_for_rounding(tiny, family, planned(model), **options)
    corrected = tiny.sample(planned(model, variance=lambda sigma: torch.tensor(0.1)), family, **options)
    keep = slice(latent.shape[-1] // 2, None)
    assert_equal_but_for_rounding(corrected[..., keep], plain[..., keep], own)
    assert relative(corrected, plain) > 1e-4


@pytest.mark.parametrize("family", FAMILIES)
def test_euler_ancestral_without_gain_is_comfyuis(tiny, planned, family):
    model = tiny.model(family)
    ours = planned(model, solver="euler_ancestral")
    assert_same_but_for_rounding(tiny, family, ours, sampler="euler_ancestral", steps=8)


@pytest.mark.parametrize("family", FAMILIES)
def test_previews_see_the_same(tiny, planned, family):
    model = tiny.model(family)

    def seen(model):
        calls = []
        tiny.sample(model, family, sampler="heun", steps=4, callback=lambda *call: calls.append(call))
        return calls

    def latents(calls):
        return torch.stack([torch.stack(call[1:3]) for call in calls])

    plain, ours = seen(model), seen(planned(model))
    assert [call[0::3] for call in ours] == [call[0::3] for call in plain]
    plain, ours = latents(plain), latents(ours)
    assert_equal_but_for_rounding(ours, plain, of_run(lambda model: latents(seen(model)), model, plain))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("sampler", REFUSED)
def test_samplers_without_a_corrected_form_are_refused(comfy, tiny, sampler, family):
    import comfy.samplers

    function = comfy.samplers.sampler_object(sampler).sampler_function
    sampling = tiny.model(family).get_model_object("model_sampling")
    sigmas = comfy.samplers.calculate_sigmas(sampling, "simple", 8)
    before = torch.random.get_rng_state()
    with pytest.raises(ValueError, match=REFUSED[sampler]):
        read_coefficients(function, sigmas, model_sampling=sampling)
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize("sampler", SOLVERS)
def test_our_samplers_are_comfyuis(comfy, sampler):
    import comfy.k_diffusion.sampling

    sigmas = torch.tensor([14.0, 7.0, 4.0, 2.0, 1.0, 0.6, 0.3, 0.1, 0.0]).double()
    x = torch.randn(2, 4, 5, 6, generator=torch.Generator().manual_seed(0)).double() * sigmas[0]

    def denoise(x, sigma, **_):
        return torch.tanh(x / (1 + sigma.reshape(-1, 1, 1, 1)))

    name = {"ddim": "euler"}.get(sampler, sampler)
    theirs = getattr(comfy.k_diffusion.sampling, f"sample_{name}")(denoise, x, sigmas, disable=True)
    assert relative(sample(denoise, x, sigmas, sampler), theirs) < 1e-9


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 6])
@pytest.mark.parametrize("path", ["ve", "flow"])
@pytest.mark.parametrize(
    "sampler", ["dpmpp_2m", "ipndm", "ipndm_v", "deis", "lms", "res_multistep", "gradient_estimation"]
)
def test_gains_are_those_of_the_samplers_own_history(comfy, sampler, path, steps, gain_oracle):
    import comfy.k_diffusion.sampling

    function = getattr(comfy.k_diffusion.sampling, f"sample_{sampler}")
    start = 14.6 if path == "ve" else 0.95
    kind = gain_oracle.KEEPS[sampler]

    def error(sigma):
        return 0.05 / (1.0 + sigma)

    for end in (0.0, start * 0.5 ** (steps + 0.1 * steps * steps)):
        levels = [start * 0.5 ** (i + 0.1 * i * i) for i in range(steps)] + [end]
        sigmas = torch.tensor(levels).double()
        options = {"path": path, "variance": lambda s: torch.tensor(error(s)), "cap": 9e9}
        paper = make_plan(function, sigmas, rule="paper", **options)
        assert paper.output == kind
        expected = gain_oracle.paper_gains(function, sigmas, kind, path, error)
        assert paper.gains[:, 0].tolist() == pytest.approx(expected.tolist(), rel=1e-4)
        expected = gain_oracle.accumulated_gains(function, sigmas, path, error)
        found = make_plan(function, sigmas, rule="accumulated", **options).gains[:, 0]
        assert found.tolist() == pytest.approx(expected.tolist(), rel=1e-4)
