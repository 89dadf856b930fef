"""Coefficients of known samplers, of samplers with odd habits, and of what must be refused."""

import math
from types import SimpleNamespace

import pytest
import torch

from gimbal.core.coefficients import read_coefficients
from gimbal.core.linear_samplers import SOLVERS, interpolation_weights, sample_euler
from gimbal.core.multistep import linear_steps

SIGMAS = torch.tensor([14.0, 7.0, 3.5, 1.0, 0.25, 0.0])


def loop(update):
    """A sampler around x <- update(x, denoised, sigma, sigma_next, i), with k-diffusion's signature."""

    def sampler(model, x, sigmas, extra_args=None, callback=None, disable=None, **options):
        for i in range(len(sigmas) - 1):
            denoised = model(x, sigmas[i] * x.new_ones([x.shape[0]]), **(extra_args or {}))
            if callback is not None:
                callback({"x": x, "i": i, "sigma": sigmas[i], "sigma_hat": sigmas[i], "denoised": denoised})
            x = update(x, denoised, sigmas[i], sigmas[i + 1], i, **options)
        return x

    return sampler


def toward(x, denoised, sigma, sigma_next, i):
    return denoised + (x - denoised) * (sigma_next / sigma)


def test_euler_by_hand():
    found = read_coefficients(sample_euler, SIGMAS[:3])  # 14, 7, 3.5: each step halves the way
    assert found.levels == (14.0, 7.0) and found.starts == (0, 1) and found.end == 3.5
    assert found.inputs.tolist() == [[1, 0, 0], [0.5, 0.5, 0]]
    assert found.final.tolist() == [0.25, 0.25, 0.5]
    assert found.inputs.dtype == torch.float64
    output, steps = linear_steps(found)
    assert output == "derivative"
    assert [step.mix.terms for step in steps] == [((0, -7.0),), ((1, -3.5),)]


def test_two_evaluations_a_step_are_told_apart():
    found = read_coefficients(SOLVERS["heun"], SIGMAS)
    assert found.levels == (14.0, 7.0, 7.0, 3.5, 3.5, 1.0, 1.0, 0.25, 0.25)
    assert found.starts == (0, 2, 4, 6, 8)
    _, steps = linear_steps(found)
    assert [len(step.stages) for step in steps] == [2, 2, 2, 2, 1]
    assert dict(steps[1].mix.terms) == pytest.approx({2: -1.75, 3: -1.75})  # half of ds = -3.5 each
    assert [stage.mix.terms for stage in steps[1].stages] == [(), ((2, -3.5),)]


def test_step_ends_are_found_without_a_callback():
    def silent(model, x, sigmas, extra_args=None, callback=None, disable=None):
        return SOLVERS["heun"](model, x, sigmas, extra_args, None, disable)

    assert read_coefficients(silent, SIGMAS).starts == (0, 2, 4, 6, 8)


@pytest.mark.parametrize(("name", "kind", "terms"), [("dpmpp_2m", "denoised", 2), ("ipndm", "derivative", 4)])
def test_each_solver_keeps_its_own_kind_of_history(name, kind, terms):
    sigmas = torch.logspace(1, -1, 12)
    output, steps = linear_steps(read_coefficients(SOLVERS[name], sigmas))
    assert output == kind
    assert max(len(step.mix.terms) for step in steps) == terms
    released = [call for step in steps for call in step.release]
    assert sorted(released) == list(range(11))  # every output is let go, once
    for i, step in enumerate(steps):
        assert not any(call in step.release for later in steps[i + 1 :] for call, _ in later.mix.terms)


def test_midpoint_weights_are_those_of_eq_43():
    sigmas = torch.tensor([8.0, 4.0, 1.0, 0.5, 0.3, 0.2], dtype=torch.float64)
    _, steps = linear_steps(read_coefficients(SOLVERS["dpmpp_2m"], sigmas))
    h, r = math.log(4.0), math.log(2.0) / math.log(4.0)  # step from 4 to 1, after one from 8 to 4
    weights = {call: -weight * sigmas[call].item() for call, weight in steps[1].mix.terms}  # D_j = x_j - sigma_j eps_j
    assert weights[1] == pytest.approx((math.exp(-h) - 1) * (1 + 1 / (2 * r)) * 4.0)
    assert weights[0] == pytest.approx(-(math.exp(-h) - 1) / (2 * r) * 8.0)


def test_interpolation_weights_integrate_polynomials():
    nodes = [2.0, 3.0, 5.0, 9.0]
    weights = interpolation_weights(nodes, 2.0, 1.5)
    for power in range(4):
        integral = (1.5 ** (power + 1) - 2.0 ** (power + 1)) / (power + 1)
        assert sum(w * n**power for w, n in zip(weights, nodes, strict=True)) == pytest.approx(integral)


def test_the_sampling_object_is_where_samplers_look():
    def looking(model, x, sigmas, extra_args=None, callback=None, disable=None):
        assert model.inner_model.inner_model.model_sampling.name == "flow"
        assert model.inner_model.model_patcher.get_model_object("model_sampling").name == "flow"
        return sample_euler(model, x, sigmas, extra_args, callback)

    found = read_coefficients(looking, SIGMAS, model_sampling=SimpleNamespace(name="flow"))
    assert len(found.levels) == 5
    with pytest.raises(ValueError, match=r"^looking cannot be read outside a real run; it has no corr") as raised:
        read_coefficients(looking, SIGMAS)
    assert isinstance(raised.value.__cause__, AttributeError)  # for a developer, not for the message


def test_a_sampler_may_ask_for_what_the_sampling_object_need_not_have():
    """As res_multistep asks for a `noise_scale` from ComfyUI 0.33.0 on."""

    def asking(model, x, sigmas, **rest):
        getattr(model.inner_model.model_patcher.get_model_object("model_sampling"), "noise_scale", 1.0)
        return sample_euler(model, x, sigmas, **rest)

    for sampling in (None, SimpleNamespace()):
        found = read_coefficients(asking, SIGMAS, model_sampling=sampling)
        assert torch.equal(found.final, read_coefficients(sample_euler, SIGMAS).final)


def test_options_reach_the_sampler():
    found = read_coefficients(SOLVERS["lms"], SIGMAS, options={"order": 1})
    assert torch.allclose(found.final, read_coefficients(sample_euler, SIGMAS).final)


def noisy(x, denoised, sigma, sigma_next, i):
    return toward(x, denoised, sigma, sigma_next, i) + 0.1 * torch.randn_like(x)


def seeded(x, denoised, sigma, sigma_next, i):
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(i))
    return toward(x, denoised, sigma, sigma_next, i) + 0.1 * noise


def clamped(x, denoised, sigma, sigma_next, i):
    return toward(x, denoised.clamp(-1, 1), sigma, sigma_next, i)


def shrunk(x, denoised, sigma, sigma_next, i):
    return 0.9 * toward(x, denoised, sigma, sigma_next, i)


def divided(x, denoised, sigma, sigma_next, i):
    return x / sigma_next


def adaptive(model, x, sigmas, extra_args=None, callback=None, disable=None):
    sigma = sigmas[0]
    while sigma > sigmas[-2]:
        denoised = model(x, sigma)
        sigma_next = sigma * (0.9 if denoised.abs().amax() > 1.5 else 0.5)
        x, sigma = toward(x, denoised, sigma, sigma_next, 0), sigma_next
    return x


def endless(model, x, sigmas, extra_args=None, callback=None, disable=None):
    while True:
        x = model(x, sigmas[0])


def elsewhere(model, x, sigmas, extra_args=None, callback=None, disable=None):
    return sample_euler(model, x, torch.linspace(float(sigmas[0]), 0.0, len(sigmas) + 2))


def at_zero(model, x, sigmas, extra_args=None, callback=None, disable=None):
    return model(sample_euler(model, x, sigmas, extra_args, callback), sigmas[-1])


@pytest.mark.parametrize(
    ("sampler", "why"),
    [
        (loop(noisy), "adds random noise"),
        (loop(seeded), "does not combine the model's outputs linearly"),
        (loop(clamped), "does not combine the model's outputs linearly"),
        (loop(divided), "not finite on this schedule"),
        (adaptive, "chooses its model calls by what the model returns"),
        (endless, "chooses its model calls by what the model returns"),
        (elsewhere, "does not begin its steps at the schedule's sigmas"),
        (at_zero, "calls the model at sigmas .*; a corrected form needs them above 0"),
        (lambda model, x: x, "cannot be read outside a real run; it has no"),
    ],
)
def test_samplers_without_coefficients_are_refused(sampler, why):
    with pytest.raises(ValueError, match=why):
        read_coefficients(sampler, SIGMAS)


def test_a_sampler_of_another_equation_is_refused():
    with pytest.raises(ValueError, match=r"does not integrate dx/dsigma = .*; it has no corrected form"):
        linear_steps(read_coefficients(loop(shrunk), SIGMAS))


def test_noise_that_has_no_effect_is_no_noise():
    found = read_coefficients(loop(lambda *a: toward(*a) + 0.0 * torch.randn_like(a[0])), SIGMAS)
    assert torch.equal(found.final, read_coefficients(loop(toward), SIGMAS).final)


def test_the_random_state_is_left_alone():
    before = torch.random.get_rng_state()
    with pytest.raises(ValueError, match="random noise"):
        read_coefficients(loop(noisy), SIGMAS)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_moved_first_sigma_is_taken_as_it_is():
    def moved(model, x, sigmas, extra_args=None, callback=None, disable=None):
        sigmas = torch.cat([sigmas[:1] * 0.9999, sigmas[1:]])
        return sample_euler(model, x, sigmas, extra_args, callback)

    assert read_coefficients(moved, SIGMAS).levels[0] == pytest.approx(14.0 * 0.9999)


@pytest.mark.parametrize(
    "sigmas",
    [[], [1.0], [1.0, 2.0], [1.0, -0.5], [math.inf, 1.0], [1.0, math.nan], [0.0, 0.0]],
)
def test_schedules_that_are_none_are_refused(sigmas):
    with pytest.raises(ValueError, match=r"sigmas \[.*\] are no schedule; give two or more finite values"):
        read_coefficients(sample_euler, torch.tensor(sigmas))
