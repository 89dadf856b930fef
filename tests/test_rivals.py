"""The benchmark's corrections of quantization error: published ones where the answer is known, and the pack's own."""

import json
from copy import deepcopy

import pytest
import torch
from evidence import advice, calibrate, layers, quantization, quantization_report, table
from evidence.rivals import deformable_schedule, ptqd, tac, tcec
from torch import nn

from gimbal.calibration.trial import PLAIN
from gimbal.core.solvers import make_plan, run

SIGMAS = [4.0, 2.0, 1.0, 0.5, 0.0]
PLAN = make_plan("euler", SIGMAS)
OFFSET = torch.tensor([0.1, -0.2]).view(-1, 1, 1)


def linear(gain, offset=0.0):
    """A model whose derivative is linear in the state: eps = gain * eps_0 + offset, eps_0 = x / sqrt(1 + sigma^2)."""

    def denoise(x, sigma):
        level = float(sigma[0])
        return x - level * (gain * x / (1 + level**2) ** 0.5 + offset)

    return denoise


def start(count=3, seed=0):
    return 4 * torch.randn(count, 2, 8, 8, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("pooled", [True, False])
def test_ptqd_undoes_a_gain_and_an_offset_by_channel(pooled):
    found = calibrate.statistics(PLAN, linear(1.0), linear(0.8, OFFSET), start())
    corrected = make_plan("euler", SIGMAS, bias=ptqd.split(found, pooled))
    fresh = start(seed=1)
    ours, theirs = run(corrected, linear(0.8, OFFSET), fresh), run(PLAN, linear(1.0), fresh)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_ptqd_pools_the_gain_alone():
    """Gains 0.5 and 1 of channels of equal power: one gain of 0.75 between them."""
    gain = torch.tensor([0.5, 1.0]).view(-1, 1, 1)
    x = start(count=200)
    x = (x - x.mean((0, 2, 3), keepdim=True)) / x.std((0, 2, 3), keepdim=True)
    found = calibrate.statistics(PLAN, linear(1.0), linear(gain), x)
    for pooled, expected in ((True, [0.75, 0.75]), (False, [0.5, 1.0])):
        slope, _, _ = ptqd.split(found, pooled)(SIGMAS[0])
        torch.testing.assert_close(1 / (1 - slope.float()), torch.tensor(expected), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("rival", [tac, tcec])
def test_a_wrong_gain_is_undone_at_every_step(rival):
    fresh = start(seed=1)
    ours = rival.fit(PLAN, linear(1.0), linear(0.8), start())(linear(0.8), fresh)
    torch.testing.assert_close(ours, run(PLAN, linear(1.0), fresh), atol=1e-5, rtol=1e-5)


def test_tac_gives_the_calibration_runs_full_precisions_means():
    x = start()
    ours = tac.fit(PLAN, linear(1.0), linear(0.8, OFFSET), x)(linear(0.8, OFFSET), x)
    theirs = run(PLAN, linear(1.0), x)
    torch.testing.assert_close(ours.mean((0, 2, 3)), theirs.mean((0, 2, 3)), atol=1e-5, rtol=1e-5)


def test_tcec_leaves_nothing_that_its_moves_could_explain():
    """Least squares: on the calibration runs the rest is orthogonal to the last move, by channel."""
    states = []

    def model(x, sigma):
        states.append(x)
        return torch.tanh(linear(0.7, OFFSET)(x, sigma))

    x = start()
    sample = tcec.fit(PLAN, linear(1.0), model, x)
    states.clear()
    ours = sample(model, x)
    rest, move = run(PLAN, linear(1.0), x) - ours, ours - states[-1]
    product = (rest * move).sum((0, 2, 3)) / (rest.square().sum((0, 2, 3)) * move.square().sum((0, 2, 3))).sqrt()
    torch.testing.assert_close(product, torch.zeros(2), atol=1e-4, rtol=0.0)


@pytest.mark.parametrize("path", ["ve", "flow"])
def test_a_shifted_level_is_that_of_the_noisier_state(path):
    sigma, variance = 0.4, 0.05
    level, scale = deformable_schedule.shifted(sigma, variance, path)
    signal = 1.0 if path == "ve" else 1.0 - sigma
    assert level**2 == pytest.approx(scale**2 * (sigma**2 + variance))  # the noise's power
    assert scale * signal == pytest.approx(1.0 if path == "ve" else 1.0 - level)
    assert deformable_schedule.shifted(sigma, 0.0, path) == pytest.approx((sigma, 1.0))


def test_an_exact_model_keeps_its_schedule():
    x = start()
    ours = deformable_schedule.fit(PLAN, linear(1.0), linear(1.0), x)(linear(1.0), x)
    torch.testing.assert_close(ours, run(PLAN, linear(1.0), x), atol=1e-4, rtol=1e-4)


class Network(nn.Module):
    """Two blocks on tokens, as wide as the latent has channels."""

    def __init__(self, width):
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList(nn.ModuleDict({"proj": nn.Linear(width, width)}) for _ in range(2))

    def forward(self, x):
        for block in self.blocks:
            x = x + torch.tanh(block["proj"](x))
        return x


def denoiser(network):
    def denoise(x, sigma):
        tokens = torch.cat([x, 0.5 * x]).flatten(2).transpose(1, 2)  # with and without a prompt
        cond, uncond = network(tokens).transpose(1, 2).unflatten(2, x.shape[2:]).chunk(2)
        return x - float(sigma[0]) * torch.lerp(uncond, cond, 3.0) / 10

    return denoise


@pytest.mark.parametrize(
    "search", [layers.Search(), layers.Search(groups=1), layers.Search(groups=None), layers.Search("linear")]
)
def test_the_layer_correction_takes_out_a_constant_error(search):
    full = Network(4).eval()
    quantized = deepcopy(full)
    with torch.inference_mode():
        for block in quantized.blocks:
            block["proj"].bias += torch.tensor([0.25, -0.5, 0.0, 0.125])  # exact in bfloat16
        x = torch.randn(5, 4, 6, 6, generator=torch.Generator().manual_seed(1))
        runs = [layers.PairedRun(each[None], denoiser(full), denoiser(quantized)) for each in x[:3]]
        found = layers.find(PLAN, full, quantized, runs, search)
        corrected = run(PLAN, layers.corrected(found, quantized, denoiser(quantized)), x)
        theirs, plain = run(PLAN, denoiser(full), x), run(PLAN, denoiser(quantized), x)
    assert (plain - theirs).abs().max() > 0.01
    torch.testing.assert_close(corrected, theirs, atol=1e-4, rtol=1e-4)
    assert not any(module._forward_hooks for module in quantized.modules())


def test_a_call_that_misses_a_place_is_said():
    network = Network(4)
    found = layers.find(
        PLAN, network, network, [layers.PairedRun(torch.zeros(1, 4, 2, 2), *[denoiser(network)] * 2)], layers.Search()
    )
    with pytest.raises(RuntimeError, match=r"passed 0 of 2"):
        layers.corrected(found, network, lambda x, sigma: x)(torch.zeros(1, 4, 2, 2), torch.ones(1))


class Sampler:
    """Latents whose error follows from the correction's name."""

    sigmas = (1.0, 0.0)

    def __init__(self, errors):
        self.errors = errors
        self.full = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
        self.noise = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))

    def held_out(self, runs):
        assert runs == advice.RUNS
        return self

    def sample(self, *, full=False, maps=None):
        return self.full if full else self.latents("half" if maps else PLAIN)

    def maps(self):
        return [(torch.ones(3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64))]

    def latents(self, name):
        return self.full + self.errors.get(name, 1.0) * self.noise


@pytest.mark.parametrize(("errors", "chosen"), [({"layers": 0.5, "moments": 0.8}, "layers"), ({"drift": 1.5}, PLAIN)])
def test_what_the_trial_advises_is_taken(errors, chosen):
    sampler = Sampler(errors)
    ours = advice.advised(sampler, lambda name, other: other.latents(name))
    assert torch.equal(ours, sampler.latents(chosen))


def stored(folder, factors):
    """Two seeds of the flow model at W4A4: a method's distances as multiples of the uncorrected ones, which are 2 and 4."""
    setting, form = quantization.SETTINGS["flow"][0], quantization.TRANSFERRED
    for seed, plain in enumerate((2.0, 4.0)):
        rows = {quantization.PLAIN: dict.fromkeys(quantization_report.NEAR, plain)}
        rows |= {
            method: {measure: plain * each[seed] for measure, each in values.items()}
            for method, values in factors.items()
        }
        runs = {quantization.name(setting, form, method): values for method, values in rows.items()}
        (folder / f"quantized-flow-seed{seed}.json").write_text(json.dumps({"about": {}, "runs": runs}))
    return quantization_report.Quantized({"quantized-flow": table.Part(folder, "quantized-flow")})


def test_a_missed_target_and_a_harmful_advice_are_said(tmp_path):
    factors = {"full_features": (0.79, 0.79), "full_pixels": (0.5, 0.605), "mse": (1.38, 0.345)}
    worse = {"full_features": (1.0, 1.0), "full_pixels": (1.01, 1.01), "mse": (1.05, 1.05)}
    found = stored(tmp_path, {quantization.LAYERS: factors, quantization.DRIFT: worse, quantization.ADVISED: worse})
    targets = quantization_report._targets(found).splitlines()
    assert (
        targets[2] == "| Flow model, Euler | W4A4 | layers | 0.79 | 0.55 (misses by 10 %) | 0.69 |"
        and len(targets) == 3
    )
    advised = quantization_report._advised(found).splitlines()
    assert (
        advised[2] == "| Flow model, Euler | W4A4 | 2 drift | 1.00 | *1.01* | *1.05* (above 1.02) |"
        and len(advised) == 3
    )
