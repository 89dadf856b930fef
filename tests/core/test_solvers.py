"""Corrected solvers against formulas written out independently, and against the theory on a Gaussian.

The model of most tests is exact: for data of mean m and standard deviation s per channel, E[x_0 | x] is known. The
oracles are METHODS.md 4.2 in plain loops. One remark on Eq. 43-45: the weights of Eq. 43 are those with which the two
outputs' *errors* enter a step of DPM-Solver++(2M). They do not sum to the step (the solver also carries on the last
difference of y), so the increment that grows is the solver's whole step in y, as in the authors' own code.
"""

import math
from itertools import pairwise

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from gimbal.core.plan import make_plan
from gimbal.core.solvers import SOLVERS, run, sample

MEAN = torch.tensor([0.3, -1.0, 0.0]).double()
SPREAD = torch.tensor([0.5, 1.0, 2.0]).double()


def karras(steps, low=0.03, high=14.6, rho=7):
    ramp = torch.linspace(0, 1, steps).double()
    return torch.cat([(high ** (1 / rho) + ramp * (low ** (1 / rho) - high ** (1 / rho))) ** rho, torch.zeros(1)])


def schedule(path, steps):
    return karras(steps) if path == "ve" else torch.linspace(1, 0, steps + 1).double()


def alpha(path, sigma):
    return 1.0 - sigma if path == "flow" else 1.0 + 0.0 * sigma


def gaussian(path, mean=MEAN):
    """The exact denoiser, and the standard deviation of x at the schedule's start."""

    def denoise(x, sigma):
        a = alpha(path, sigma)
        m, s = mean.reshape(1, -1, 1, 1), SPREAD.reshape(1, -1, 1, 1)
        a, sigma = a.reshape(-1, 1, 1, 1), sigma.reshape(-1, 1, 1, 1)
        return m + s**2 * a / (s**2 * a**2 + sigma**2) * (x - a * m)

    return denoise


def variance(sigma):
    """Different in each channel, and growing toward the end as measured ones do."""
    return torch.tensor([0.02, 0.1, 0.3]).double() / (1.0 + sigma)


def start(path, sigma=14.6, batch=2):
    generator = torch.Generator().manual_seed(1)
    noise = torch.randn(batch, 3, 4, 5, generator=generator).double()
    return noise * (sigma if path == "ve" else 1.0)


def channels(c):
    return c.reshape(1, -1, 1, 1)


def assert_equal(found, expected, tolerance=1e-6):
    assert (found - expected).abs().max() <= tolerance * expected.abs().max()


# --- the paper's formulas, written out ---


def euler_oracle(denoise, x, sigmas):
    """Eq. 22-23; with x - denoised = sigma v also Eq. 27."""
    for sigma, sigma_next in pairwise(sigmas.tolist()):
        out = (x - denoise(x, x.new_full((len(x),), sigma))) / sigma
        c = abs(sigma_next - sigma) / (2 * sigma) * variance(sigma)
        x = x + (sigma_next - sigma) * (1 + channels(c)) * out
    return x


def flow_marginal_oracle(denoise, x, sigmas):
    """Euler on flow with Eq. 37 in y = x / (1 - sigma), V_eps = (1 - sigma)^2 V_v."""
    for sigma, sigma_next in pairwise(sigmas.tolist()):
        v = (x - denoise(x, x.new_full((len(x),), sigma))) / sigma
        if sigma == 1.0:
            x = x + (sigma_next - sigma) * v
            continue
        bar, bar_next = sigma / (1 - sigma), sigma_next / (1 - sigma_next)
        eps, w = x + (1 - sigma) * v, bar_next - bar
        c = w**2 * (1 - sigma) ** 2 * variance(sigma) / abs(bar**2 - bar_next**2)
        x = (1 - sigma_next) * (x / (1 - sigma) + (1 + channels(c)) * w * eps)
    return x


def midpoint_oracle(denoise, x, sigmas):
    """DPM-Solver++(2M) on VE, c by Eq. 43-44, first order in the first step and in the step to 0."""
    previous, levels = None, sigmas.tolist()
    for i, (sigma, sigma_next) in enumerate(pairwise(levels)):
        denoised = denoise(x, x.new_full((len(x),), sigma))
        shrink = sigma_next / sigma - 1.0  # e^-h - 1, h = lambda_i - lambda_{i-1}, lambda = -ln sigma
        if previous is None or sigma_next == 0.0:
            weighted = (shrink * sigma) ** 2 * variance(sigma)
            step = shrink * (x - denoised)
        else:
            h, h_previous = math.log(sigma / sigma_next), math.log(levels[i - 1] / sigma)
            r = h_previous / h
            w1, w2 = shrink * (1 + 1 / (2 * r)) * sigma, -shrink / (2 * r) * levels[i - 1]
            weighted = w1**2 * variance(sigma) + w2**2 * variance(levels[i - 1])
            step = shrink * (x - (1 + 1 / (2 * r)) * denoised + previous / (2 * r))
        c = weighted / abs(sigma**2 - sigma_next**2)
        x, previous = x + (1 + channels(c)) * step, denoised
    return x


@pytest.mark.parametrize("steps", [1, 2, 10, 30])
@pytest.mark.parametrize("solver", ["euler", "ddim"])
def test_euler_is_eq_23(solver, steps):
    sigmas, x = schedule("ve", steps), start("ve")
    found = sample(gaussian("ve"), x, sigmas, solver, variance=variance)
    assert_equal(found, euler_oracle(gaussian("ve"), x, sigmas))
    assert (found - sample(gaussian("ve"), x, sigmas, solver)).abs().max() > 1e-3


@pytest.mark.parametrize("steps", [1, 2, 10, 30])
def test_flow_euler_is_eq_27_or_its_marginal_form(steps):
    sigmas, x, denoise = schedule("flow", steps), start("flow"), gaussian("flow")
    paper = sample(denoise, x, sigmas, "euler", path="flow", rule="paper", variance=variance)
    assert_equal(paper, euler_oracle(denoise, x, sigmas))
    marginal = sample(denoise, x, sigmas, "euler", path="flow", variance=variance)
    assert_equal(marginal, flow_marginal_oracle(denoise, x, sigmas))
    if steps > 1:
        assert (paper - marginal).abs().max() > 1e-3


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 10, 30])
def test_midpoint_is_eq_43_to_45(steps):
    sigmas, x = schedule("ve", steps), start("ve")
    found = sample(gaussian("ve"), x, sigmas, "dpmpp_2m", variance=variance, rule="paper", cap=math.inf)
    assert_equal(found, midpoint_oracle(gaussian("ve"), x, sigmas))
    assert (found - sample(gaussian("ve"), x, sigmas, "dpmpp_2m")).abs().max() > 1e-3


def test_midpoint_in_three_steps_by_hand():
    """w1 = (e^-h - 1)(1 + 1/2r) sb1, w2 = -(e^-h - 1)(1/2r) sb0 with h = ln(2.9/0.6), r = ln(14.6/2.9)/h."""
    plan = make_plan("dpmpp_2m", [14.6, 2.9, 0.6, 0.0], variance=constant(0.05), rule="paper")
    h, shrink = math.log(2.9 / 0.6), 0.6 / 2.9 - 1
    half = h / math.log(14.6 / 2.9) / 2
    by_hand = 0.05 * ((shrink * (1 + half) * 2.9) ** 2 + (shrink * half * 14.6) ** 2) / (2.9**2 - 0.6**2)
    assert plan.output == "denoised" and plan.equation == "Eq. 37"
    assert plan.gains[1].tolist() == pytest.approx([by_hand] * 3)


FEW = {
    "ve": [[14.6, 0.0], [14.6, 2.9], [14.6, 2.9, 0.6], [14.6, 2.9, 0.6, 0.0], [14.6, 5.0, 1.7, 0.6, 0.0]],
    "flow": [[0.9, 0.0], [1.0, 0.4], [0.9, 0.4, 0.1], [0.9, 0.5, 0.2, 0.0], [1.0, 0.8, 0.5, 0.2, 0.0]],
}


@pytest.mark.parametrize(("path", "levels"), [(path, levels) for path in FEW for levels in FEW[path]])
@pytest.mark.parametrize("solver", ["dpmpp_2m", "ipndm", "lms"])
def test_a_few_steps_have_the_gains_of_the_solvers_own_history(solver, path, levels, gain_oracle):
    sigmas = torch.tensor(levels).double()

    def error(sigma):
        return 0.05 / (1.0 + sigma)

    def gains(rule):
        plan = make_plan(solver, sigmas, path=path, variance=lambda s: torch.tensor(error(s)), rule=rule, cap=9e9)
        assert plan.output == gain_oracle.KEEPS[solver] and plan.equation != "Eq. 22"
        return plan.gains[:, 0]

    expected = gain_oracle.paper_gains(SOLVERS[solver], sigmas, gain_oracle.KEEPS[solver], path, error)
    assert gains("paper").tolist() == pytest.approx(expected.tolist(), rel=1e-5)
    expected = gain_oracle.accumulated_gains(SOLVERS[solver], sigmas, path, error)
    assert gains("auto").tolist() == pytest.approx(expected.tolist(), rel=1e-5)


@pytest.mark.parametrize(("low", "high"), [(0, 7), (5, 12), (3, 20)])
def test_partial_schedules(low, high):
    """denoise below 1, and KSamplerAdvanced's end above 0."""
    for path, oracle in (("ve", euler_oracle), ("flow", flow_marginal_oracle)):
        sigmas = schedule(path, 20)[low : high + 1]
        x = start(path, sigmas[0].item())
        assert_equal(
            sample(gaussian(path), x, sigmas, "euler", path=path, variance=variance),
            oracle(gaussian(path), x, sigmas),
        )
    sigmas = schedule("ve", 20)[low : high + 1]
    x = start("ve", sigmas[0].item())
    found = sample(gaussian("ve"), x, sigmas, "dpmpp_2m", variance=variance, rule="paper")
    assert_equal(found, midpoint_oracle(gaussian("ve"), x, sigmas))


# --- the theory: independent errors of known variance ---


def final_variance(path, steps, solver, noise, rule="auto", corrected=True):
    """Exact, per channel: everything is linear, so unit impulses say how the start and each error reach the end."""
    sigmas = schedule(path, steps)
    plan = make_plan(solver, sigmas, path=path, variance=noise if corrected else None, rule=rule)
    levels = [stage.sigma for step in plan.steps for stage in step.stages]
    exact, calls = gaussian(path, mean=torch.zeros(3).double()), []

    def with_impulses(x, sigma):
        error = torch.zeros_like(x)
        error[1 + len(calls)] = 1.0
        calls.append(sigma)
        return exact(x, sigma) - sigma.reshape(-1, 1, 1, 1) * error

    x = torch.zeros(1 + len(levels), 3, 1, 1).double()
    x[0] = 1.0
    response = run(plan, with_impulses, x)[:, :, 0, 0]  # (1 + calls, C)
    first = SPREAD**2 + sigmas[0] ** 2 if path == "ve" else torch.ones(3).double()
    injected = torch.stack([noise(level) for level in levels])
    return response[0] ** 2 * first, response[0] ** 2 * first + (response[1:] ** 2 * injected).sum(0)


def constant(value):
    return lambda sigma: torch.full((3,), value).double()


NOISES = {"0.05": constant(0.05), "0.3": constant(0.3), "by channel": variance}
HOLDS = [
    ("ve", "euler", "auto"),
    ("ve", "euler", "marginal"),
    ("ve", "heun", "auto"),
    ("ve", "dpmpp_2m", "auto"),
    ("ve", "ipndm", "auto"),
    ("ve", "lms", "auto"),
    ("ve", "heun", "accumulated"),
    ("flow", "lms", "auto"),
    ("flow", "euler", "auto"),
    ("flow", "heun", "auto"),
    ("flow", "dpmpp_2m", "auto"),
    ("flow", "ipndm", "auto"),
]


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("steps", [10, 20, 30])
@pytest.mark.parametrize(("path", "solver", "rule"), HOLDS)
def test_correction_brings_the_variance_back(path, solver, rule, steps, noise):
    """Nearer to what this solver gives without errors, in every channel."""
    clean, plain = final_variance(path, steps, solver, NOISES[noise], corrected=False)
    _, corrected = final_variance(path, steps, solver, NOISES[noise], rule)
    assert ((corrected - clean).abs() < (plain - clean).abs()).all()


@pytest.mark.parametrize("steps", [20, 30])
@pytest.mark.parametrize("solver", ["dpmpp_2m", "heun"])
def test_it_is_nearer_to_the_data_where_the_solver_is(solver, steps):
    """Euler's own shrinkage hides behind the errors' variance: nearer to the data is for solvers near to it."""
    _, plain = final_variance("ve", steps, solver, NOISES["0.3"], corrected=False)
    _, corrected = final_variance("ve", steps, solver, NOISES["0.3"], "accumulated")
    assert ((corrected - SPREAD**2).abs() < (plain - SPREAD**2).abs()).all()


@pytest.mark.parametrize("steps", [10, 20, 30])
def test_eq_37_overcorrects_multistep_solvers(steps):
    """It forgets that an output's second weight is negative: the variance ends further off, on the other side."""
    clean, plain = final_variance("ve", steps, "dpmpp_2m", constant(0.05), corrected=False)
    _, corrected = final_variance("ve", steps, "dpmpp_2m", constant(0.05), "paper")
    assert (corrected < clean).all()
    assert ((corrected - clean).abs() > (plain - clean).abs()).all()


@pytest.mark.parametrize("steps", [10, 20, 30])
def test_scaling_the_velocity_is_harmful(steps):
    """Eq. 27 lengthens the data's part of the velocity too: for data of spread 1 and 2 it makes things worse."""
    clean, plain = final_variance("flow", steps, "euler", constant(0.3), corrected=False)
    _, corrected = final_variance("flow", steps, "euler", constant(0.3), "paper")
    assert ((corrected - clean) > (plain - clean))[1:].all()


def test_the_exact_variances_are_those_of_samples():
    generator = torch.Generator().manual_seed(0)
    sigmas, exact = schedule("ve", 20), gaussian("ve", mean=torch.zeros(3).double())

    def noisy(x, sigma):
        error = 0.3**0.5 * torch.randn(x.shape, generator=generator, dtype=x.dtype)
        return exact(x, sigma) - sigma.reshape(-1, 1, 1, 1) * error

    x = torch.randn(1, 3, 200, 200, generator=generator).double() * channels((SPREAD**2 + sigmas[0] ** 2).sqrt())
    for corrected in (False, True):
        _, expected = final_variance("ve", 20, "euler", constant(0.3), corrected=corrected)
        found = sample(noisy, x, sigmas, "euler", variance=constant(0.3) if corrected else None).var((0, 2, 3))
        assert (
            (found / expected - 1).abs() < 5 * (2 / 40000) ** 0.5
        ).all()  # 5 standard errors, 3.5 %; the gap is 16 %


# --- replay ---


def network(dtype=torch.float32, dims=4):
    """A fixed, smooth, nonlinear denoiser."""
    generator = torch.Generator().manual_seed(3)
    weight = torch.randn(3, 3, generator=generator).to(dtype)

    def denoise(x, sigma):
        level = sigma.to(x.dtype).reshape(-1, *[1] * (x.ndim - 1))
        mixed = torch.einsum("dc,bc...->bd...", weight.to(x.dtype), x / (1 + level**2).sqrt())
        return torch.tanh(mixed + level.log1p()) + 0.3 * x / (1 + level)

    return denoise


SHAPES = [(2, 3, 4, 5), (1, 3, 2, 4, 5)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("path", ["ve", "flow"])
@pytest.mark.parametrize("steps", [1, 2, 3, 12])
@pytest.mark.parametrize("solver", SOLVERS)
def test_without_gain_a_plan_is_its_solver(solver, steps, path, shape):
    sigmas = schedule(path, steps).float()
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * sigmas[0]
    for statistics in (None, lambda _: torch.zeros(3)):
        plan = make_plan(solver, sigmas, path=path, variance=statistics)
        assert_equal(run(plan, network(), x.double()), sample(network(), x.double(), sigmas.double(), solver), 1e-9)
        # iPNDM's weights on Karras steps amplify rounding: its own float32 is 1.6e-5 away from float64
        tolerance = 5e-5 if solver == "ipndm" else 1e-5
        assert_equal(run(plan, network(), x), sample(network(), x, sigmas, solver), tolerance)


@pytest.mark.parametrize("strength", [0.0, 1.0])
@pytest.mark.parametrize("solver", SOLVERS)
def test_nothing_to_correct_is_bit_exact(solver, strength):
    sigmas, x = karras(6).float(), start("ve").float()
    statistics = variance if strength == 0.0 else None
    found = sample(network(), x, sigmas, solver, variance=statistics, strength=strength)
    expected = SOLVERS[solver](lambda x, sigma: network()(x, sigma), x, sigmas)
    assert torch.equal(found, expected)


def test_callback_is_the_samplers_own():
    for solver in ("heun", "dpmpp_2m"):
        sigmas, x, seen = karras(5).float(), start("ve").float(), [[], []]
        sample(network(), x, sigmas, solver, callback=seen[0].append)
        run(make_plan(solver, sigmas), network(), x, callback=seen[1].append)
        assert [info["i"] for info in seen[1]] == [0, 1, 2, 3, 4]
        for one, other in zip(*seen, strict=True):
            assert one.keys() == other.keys()
            for key in ("x", "sigma", "sigma_hat", "denoised"):
                assert one[key].shape == other[key].shape
                torch.testing.assert_close(one[key], other[key], rtol=1e-4, atol=1e-5)


def test_the_model_gets_what_it_was_given():
    seen = []

    def denoise(x, sigma):
        seen.append((x.dtype, sigma.dtype, sigma.shape))
        return network()(x, sigma)

    x = start("ve").bfloat16()
    found = sample(denoise, x, karras(4), "dpmpp_2m", variance=variance)
    assert found.dtype == torch.bfloat16
    assert set(seen) == {(torch.bfloat16, torch.float32, torch.Size([2]))}


def test_samples_do_not_mix():
    x, plan = start("ve", batch=3), make_plan("dpmpp_2m", karras(6), variance=variance)
    together = run(plan, network(), x)
    apart = torch.cat([run(plan, network(), x[i : i + 1]) for i in range(3)])
    assert_equal(together, apart, 1e-12)
    assert run(plan, network(), x[:0]).shape == (0, 3, 4, 5)


def test_the_input_is_left_alone():
    x = start("ve")
    before = x.clone()
    sample(network(), x, karras(4), "euler", variance=variance)
    assert torch.equal(x, before)


class Operations(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.elementwise, self.waits = 0, []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function._overloadpacket.__name__
        if name in ("_local_scalar_dense", "_to_copy", "nonzero", "equal"):
            self.waits.append(name)
        result = function(*args, **(kwargs or {}))
        self.elementwise += isinstance(result, torch.Tensor) and result.shape == (2, 3, 4, 5)
        return result


@pytest.mark.parametrize("statistics", [variance, lambda sigma: torch.tensor(0.1)])
@pytest.mark.parametrize("solver", ["euler", "dpmpp_2m", "heun"])
def test_correction_costs_two_passes_a_step_and_no_wait(solver, statistics):
    sigmas, x = karras(8), start("ve").float()
    counts = []
    for plan in (make_plan(solver, sigmas), make_plan(solver, sigmas, variance=statistics)):
        with Operations() as operations:
            waits_by_call = []

            def denoise(x, sigma, operations=operations, waits_by_call=waits_by_call):
                waits_by_call.append(len(operations.waits))
                return x

            run(plan, denoise, x)
        counts.append(operations.elementwise)
        assert len(operations.waits) == waits_by_call[0]  # the plan's numbers are sent before the first call
    assert counts[1] - counts[0] <= 2 * 8


# --- options ---


def test_strength_and_cap():
    plain = make_plan("euler", karras(6), variance=variance)
    half = make_plan("euler", karras(6), variance=variance, strength=0.5)
    back = make_plan("euler", karras(6), variance=variance, strength=-1.0)
    assert torch.allclose(half.gains, plain.gains / 2) and torch.equal(back.gains, -plain.gains)
    assert plain.capped == ()
    capped = make_plan("euler", karras(6), variance=variance, strength=10.0, cap=0.5)
    assert capped.capped == (3, 4, 5) and capped.gains.max() == 0.5
    assert "capped in 3 steps, the first being step 3" in capped.describe()


def test_describe_says_what_rules():
    assert (
        make_plan("euler", karras(6), variance=variance).describe().startswith("euler, path ve, Eq. 22, 6 steps, c ")
    )
    flow = schedule("flow", 6)
    assert "Eq. 27" in make_plan("euler", flow, path="flow", rule="paper", variance=variance).describe()
    assert "Eq. 37" in make_plan("euler", flow, path="flow", variance=variance).describe()
    assert "Eq. 37" in make_plan("dpmpp_2m", flow, path="flow", rule="paper", variance=variance).describe()
    assert "Eq. 36 accumulated" in make_plan("lms", karras(6), rule="accumulated", variance=variance).describe()
    assert make_plan("lms", karras(6), bias=bias).describe() == "lms, path ve, 6 steps; bias correction deterministic"


def test_one_number_for_all_channels():
    x, sigmas = start("ve"), karras(8)
    scalar = sample(network(), x, sigmas, "dpmpp_2m", variance=lambda _: torch.tensor(0.1))
    same = sample(network(), x, sigmas, "dpmpp_2m", variance=lambda _: torch.full((3,), 0.1))
    assert_equal(scalar, same, 1e-12)


def test_flow_from_sigma_one_has_no_first_gain():
    for rule in ("marginal", "accumulated"):
        for solver in ("euler", "dpmpp_2m", "heun", "ipndm"):
            plan = make_plan(solver, schedule("flow", 8), path="flow", variance=variance, rule=rule)
            assert plan.gains.isfinite().all() and not plan.gains[0].any() and plan.gains[1:].any()
    near = torch.tensor([1.0 - 1e-6, 0.7, 0.3, 0.0])  # continuous there
    plan = make_plan("euler", near, path="flow", variance=variance)
    assert plan.gains[0].max() < 1e-6 and max(plan.alpha_ratios) * plan.gains[0].max() < 1e-5


def test_repeated_sigmas_are_steps_of_no_length():
    sigmas, x = torch.tensor([5.0, 5.0, 2.0, 2.0, 0.0]), start("ve", 5.0)
    found = sample(network(), x, sigmas, "euler", variance=variance)
    assert_equal(found, sample(network(), x, sigmas[[0, 2, 4]], "euler", variance=variance))
    flow = make_plan("euler", torch.tensor([1.0, 1.0, 0.5, 0.0]), path="flow", variance=variance)
    assert flow.gains.isfinite().all()


def test_after_step_sees_and_changes_every_state():
    x, sigmas, seen = start("ve"), karras(5), []

    def after_step(i, state):
        seen.append((i, state))
        return state * 1.5

    found = sample(network(), x, sigmas, "euler", after_step=after_step)
    assert [i for i, _ in seen] == [0, 1, 2, 3, 4]
    assert torch.equal(found, seen[-1][1] * 1.5)
    restart = sample(
        network(), seen[1][1] * 1.5, sigmas[2:3].tolist() + sigmas[3:4].tolist(), "euler", after_step=lambda i, s: s
    )
    assert_equal(restart, seen[2][1])


def test_a_mask_keeps_its_places_as_the_solver_has_them():
    x, sigmas = start("ve"), karras(5)
    mask = torch.zeros(1, 1, 4, 5)
    mask[..., :2] = 1.0
    latent = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(9)).double()

    def inpainting(x, sigma):
        """As ComfyUI does: kept places hold the latent, whatever the state."""
        return network()(x * mask + (latent + x - x) * (1 - mask), sigma) * mask + latent * (1 - mask)

    found = sample(inpainting, x, sigmas, "euler", variance=variance, mask=mask)
    assert_equal(found[..., 2:], latent[..., 2:], 1e-12)
    everywhere = sample(inpainting, x, sigmas, "euler", variance=variance)
    assert not torch.allclose(everywhere[..., 2:], latent[..., 2:], rtol=0, atol=1e-3)
    # corrected as without a mask where it is 1; this network does not mix positions
    assert_equal(found[..., :2], everywhere[..., :2], 1e-12)


# --- bias ---


def bias(sigma):
    return (
        torch.tensor([0.2, 0.1, -0.3]).double(),
        torch.tensor([0.5, 0.0, 1.0]).double(),
        torch.full((3,), 0.05).double(),
    )


@pytest.mark.parametrize("path", ["ve", "flow"])
def test_deterministic_bias_correction_is_eq_46(path):
    sigmas, x, denoise = schedule(path, 8), start(path), gaussian(path)

    def unbiased(x, sigma):
        slope, mean, mean_error = (channels(part) for part in bias(0))
        level = sigma.reshape(-1, 1, 1, 1)
        out = (x - denoise(x, sigma)) / level
        return x - level * (out - (mean_error + slope * (out - mean)))

    for solver in ("euler", "dpmpp_2m", "heun"):
        found = sample(denoise, x, sigmas, solver, path=path, bias=bias)
        assert_equal(found, sample(unbiased, x, sigmas, solver), 1e-9)
        both = sample(denoise, x, sigmas, solver, path=path, bias=bias, variance=variance)
        assert_equal(both, sample(unbiased, x, sigmas, solver, path=path, variance=variance), 1e-9)


def test_stochastic_bias_correction_draws_the_conditional_error():
    sigmas, x = torch.tensor([4.0, 0.0]).double(), torch.zeros(1, 3, 100, 100).double()
    options = {"bias": bias, "bias_mode": "stochastic", "variance": constant(0.3), "strength": 0.0}
    found, again = (
        sample(lambda x, _: x, x, sigmas, "euler", **options, generator=torch.Generator().manual_seed(seed))
        for seed in (1, 1)
    )
    assert torch.equal(found, again)
    # eps_hat = 0; x = 4 (mean_error - slope mean + sqrt(V) n)
    expected = 4 * (0.05 - torch.tensor([0.2 * 0.5, 0.0, -0.3]).double())
    assert torch.allclose(found.mean((0, 2, 3)), expected, atol=4 * 4 * (0.3 / 10000) ** 0.5)
    assert torch.allclose(found.std((0, 2, 3)), torch.full((3,), 4 * 0.3**0.5).double(), rtol=0.05)


def test_a_stochastic_bias_counts_the_variance_once():
    """The drawn noise is of variance V; a gain would answer for V again."""
    options = {"bias": bias, "bias_mode": "stochastic", "variance": constant(0.3)}
    for solver in ("euler", "dpmpp_2m"):
        plan = make_plan(solver, karras(6), **options)
        assert not plan.gains.any() and plan.equation == ""
        assert torch.allclose(plan.bias.spread, torch.full((6, 3), 0.3**0.5).double())
        assert "c 0" not in plan.describe() and plan.describe().endswith("bias correction stochastic")
    assert make_plan("euler", karras(6), bias=bias, variance=constant(0.3)).gains.any()


# --- euler_ancestral ---


def noises(shape, steps):
    generator = torch.Generator().manual_seed(5)
    return [torch.randn(shape, generator=generator).double() for _ in range(steps)]


@pytest.mark.parametrize("eta", [0.0, 0.6, 1.0])
def test_ancestral_steps_are_corrected_down_to_sigma_down(eta):
    sigmas, x, denoise = karras(8), start("ve"), gaussian("ve")
    drawn = iter(noises(x.shape, 8))
    found = sample(
        denoise,
        x,
        sigmas,
        "euler_ancestral",
        variance=variance,
        options={"eta": eta, "s_noise": 0.9},
        noise_sampler=lambda *_: next(drawn),
    )
    drawn, levels = iter(noises(x.shape, 8)), sigmas.tolist()
    for sigma, sigma_next in pairwise(levels):
        up = min(sigma_next, eta * (sigma_next**2 * (sigma**2 - sigma_next**2) / sigma**2) ** 0.5)
        down = (sigma_next**2 - up**2) ** 0.5
        eps = (x - denoise(x, x.new_full((2,), sigma))) / sigma
        x = x + (down - sigma) * (1 + channels(abs(down - sigma) / (2 * sigma) * variance(sigma))) * eps
        if up > 0:
            x = x + next(drawn) * 0.9 * up
    assert_equal(found, x)
    if eta == 0.0:
        assert_equal(found, sample(denoise, start("ve"), sigmas, "euler", variance=variance))


@pytest.mark.parametrize("rule", ["paper", "marginal"])
def test_flow_ancestral_keeps_the_data_and_fills_up_the_noise(rule):
    sigmas, x, denoise = schedule("flow", 8), start("flow"), gaussian("flow")
    drawn = iter(noises(x.shape, 8))
    options = {"path": "flow", "rule": rule, "variance": variance, "noise_sampler": lambda *_: next(drawn)}
    found = sample(denoise, x, sigmas, "euler_ancestral", **options)
    drawn, levels = iter(noises(x.shape, 8)), sigmas.tolist()
    oracle = euler_oracle if rule == "paper" else flow_marginal_oracle
    for sigma, sigma_next in pairwise(levels):
        down = sigma_next**2 / sigma
        x = oracle(denoise, x, torch.tensor([sigma, down]).double())
        if down > 0:
            share = (1 - sigma_next) / (1 - down)
            x = share * x + next(drawn) * (sigma_next**2 - (down * share) ** 2) ** 0.5
    assert_equal(found, x)


def test_ancestral_noise_comes_from_the_generator():
    x, options = start("ve"), {"variance": variance}
    one, same, other = (
        sample(network(), x, karras(6), "euler_ancestral", generator=torch.Generator().manual_seed(s), **options)
        for s in (1, 1, 2)
    )
    assert torch.equal(one, same) and not torch.allclose(one, other)


# --- what is refused ---


def test_bad_arguments_are_refused():
    sigmas, x = karras(4), start("ve")
    for option, value in (("path", "vp"), ("rule", "eq37"), ("bias_mode", "both")):
        with pytest.raises(ValueError, match=rf"make_plan: {option} is '{value}'; choose one of"):
            make_plan("euler", sigmas, **{option: value})
    with pytest.raises(ValueError, match=r"solver is 'eular'; choose one of euler, ddim"):
        make_plan("eular", sigmas)
    with pytest.raises(ValueError, match=r"make_plan: strength is nan"):
        make_plan("euler", sigmas, variance=variance, strength=math.nan)
    with pytest.raises(ValueError, match=r"sigmas begin at 14\.\d+, path flow ends at 1; is the model a flow model"):
        make_plan("euler", sigmas, path="flow")
    with pytest.raises(ValueError, match=r"make_plan: variance has \[1, 3\] channels, depending on sigma"):
        make_plan("euler", sigmas, variance=lambda s: variance(s)[: 1 if s > 1 else 3])
    with pytest.raises(ValueError, match=r"variance \[-1.0\] is negative"):
        make_plan("euler", sigmas, variance=lambda s: torch.tensor([-1.0]))
    with pytest.raises(ValueError, match=r"run: variance has 3 channels, x 4; use this model's statistics"):
        run(make_plan("euler", sigmas, variance=variance), network(), torch.zeros(1, 4, 2, 2))
    with pytest.raises(ValueError, match=r"stochastic bias correction draws noise of variance V; give variance too"):
        make_plan("euler", sigmas, bias=bias, bias_mode="stochastic")
    with pytest.raises(ValueError, match=r"make_plan: bias at sigma .* is not finite"):
        make_plan("euler", sigmas, bias=lambda s: (math.nan, 0.0, 0.0))
    with pytest.raises(ValueError, match=r"cap_gain: cap is 0.0"):
        make_plan("euler", sigmas, variance=variance, cap=0.0)
    with pytest.raises(ValueError, match=r"euler_ancestral: eta=1.5"):
        make_plan("euler_ancestral", sigmas, options={"eta": 1.5})
    with pytest.raises(ValueError, match=r"sigmas \[.*\] are no schedule"):
        sample(network(), x, sigmas[:1], "euler", variance=variance)
