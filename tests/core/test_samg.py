"""SAMG against a float64 numpy reference, values derived by hand, and the cases where energies say nothing."""

from itertools import product
from math import gcd

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from gimbal.core.samg import guidance_energy, samg, samg_cond, scale_map, steer_cond

PAIRS = list(product(("minmax", "quantile"), ("linear", "bound")))
SETTINGS = [(*pair, scope) for pair, scope in product(PAIRS, ("clip", "frame"))]
SHAPES = [
    (2, 4, 13, 9),
    (3, 16, 24, 32),
    (1, 1, 2, 3),
    (2, 4, 3, 13, 9),
    (1, 16, 5, 8, 12),
    (2, 4, 80, 96),
    (1, 4, 5, 30, 40),
]
W_MIN, W_MAX = 5.0, 12.0


def predictions(shape, seed=0, dtype=torch.float32):
    """Two predictions of different magnitude in each sample."""
    generator = torch.Generator().manual_seed(seed)
    magnitude = torch.logspace(-1, 1, shape[0]).reshape(-1, *[1] * (len(shape) - 1))
    return [(torch.randn(shape, generator=generator) * magnitude).to(dtype) for _ in range(2)]


def from_energy(energy):
    """Predictions of one channel with the given energies, a nested list of shape (*spatial) or (B, *spatial)."""
    energy = torch.as_tensor(energy, dtype=torch.float32)[:, None]
    return energy.sqrt(), torch.zeros_like(energy)


def inner_98_percent(energy):
    """Ends of the range of one energy map, an array (..., H, W), at the positions that quantile looks at."""
    picture = energy.shape[-2] * energy.shape[-1]
    step = max(s for s in range(1, max(energy.size // 1024, 1) + 1) if gcd(s, picture) == 1)
    seen = np.sort(energy.reshape(-1)[::step])
    left_out = int(0.01 * len(seen))
    return seen[left_out], seen[len(seen) - 1 - left_out]


def reference_map(cond, uncond, normalize="minmax", curve="linear", scope="clip", w_min=W_MIN, w_max=W_MAX, eps=0.0):
    """METHODS.md section 3, sample by sample and frame by frame; eps is the paper's 1e-8 where a test wants it."""
    energy = ((cond.double().numpy() - uncond.double().numpy()) ** 2).mean(1, keepdims=True)
    result = np.empty_like(energy)
    for b in range(len(energy)):
        frames = [(b, 0, f) for f in range(energy.shape[2])] if scope == "frame" and energy.ndim == 5 else [(b,)]
        for index in frames:
            e = energy[index]
            low, high = (e.min(), e.max()) if normalize == "minmax" else inner_98_percent(e)
            if curve == "linear":
                result[index] = w_max - (w_max - w_min) * np.clip((e - low) / (high - low + eps), 0.0, 1.0)
            else:
                result[index] = np.clip(1.0 + (w_min - 1.0) * np.sqrt(high / e), w_min, w_max)
    return result


def assert_relative(found, expected, tolerance, scale=None):
    scale = np.abs(expected) if scale is None else scale
    assert (np.abs(found.double().numpy() - expected) <= tolerance * scale).all()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("normalize", "curve", "scope"), SETTINGS)
def test_matches_the_reference(shape, normalize, curve, scope):
    cond, uncond = predictions(shape)
    expected = reference_map(cond, uncond, normalize, curve, scope)
    found = scale_map(cond, uncond, W_MIN, W_MAX, normalize, curve, scope)
    assert found.shape == (shape[0], 1, *shape[2:])
    assert_relative(found, expected, 1e-6)
    c, u = cond.double().numpy(), uncond.double().numpy()
    guided = samg(cond, uncond, W_MIN, W_MAX, normalize, curve, scope)
    assert_relative(guided, u + expected * (c - u), 1e-6, scale=np.abs(u) + expected * np.abs(c - u))


def test_the_paper_s_own_epsilon_makes_no_difference_at_ordinary_energies():
    cond, uncond = predictions((1, 4, 24, 32))
    assert_relative(scale_map(cond, uncond, W_MIN, W_MAX), reference_map(cond, uncond, eps=1e-8), 1e-6)


@pytest.mark.parametrize("shape", SHAPES)
def test_energy_matches_the_reference(shape):
    cond, uncond = predictions(shape)
    expected = ((cond.double().numpy() - uncond.double().numpy()) ** 2).mean(1, keepdims=True)
    assert_relative(guidance_energy(cond, uncond), expected, 1e-6)


# Unit roundoff of each dtype. float64 comes back as float64, with the accuracy of the float32 inside.
@pytest.mark.parametrize(
    ("dtype", "roundoff"), [(torch.float16, 2.0**-11), (torch.bfloat16, 2.0**-8), (torch.float64, 0.0)]
)
@pytest.mark.parametrize(("normalize", "curve", "scope"), SETTINGS)
def test_other_dtypes_lose_only_the_rounding_of_the_result(dtype, roundoff, normalize, curve, scope):
    cond, uncond = predictions((2, 4, 3, 13, 9), dtype=dtype)
    expected = reference_map(cond, uncond, normalize, curve, scope)
    c, u = cond.double().numpy(), uncond.double().numpy()
    guided = samg(cond, uncond, W_MIN, W_MAX, normalize, curve, scope)
    assert guided.dtype == dtype
    error = np.abs(guided.double().numpy() - (u + expected * (c - u)))
    assert (error <= roundoff * np.abs(guided.double().numpy()) + 1e-6 * (np.abs(u) + expected * np.abs(c - u))).all()
    found = scale_map(cond, uncond, W_MIN, W_MAX, normalize, curve, scope)
    assert found.dtype == torch.float32
    assert_relative(found, expected, 1e-6)


def test_half_precision_energy_does_not_overflow():
    cond = torch.full((1, 4, 2, 2), 300.0, dtype=torch.float16)
    energy = guidance_energy(cond, torch.zeros_like(cond))
    assert energy.dtype == torch.float32
    assert energy.unique().tolist() == [90000.0]  # beyond float16's 65504


def test_guided_prediction_by_hand():
    # Guidance of the two channels at four positions, and its energies: 0, (1 + 1)/2 = 1, (1 + 9)/2 = 5, (4 + 16)/2 = 10.
    guidance = torch.tensor([[0.0, 1.0, 1.0, -2.0], [0.0, -1.0, 3.0, 4.0]]).reshape(1, 2, 2, 2)
    uncond = torch.full((1, 2, 2, 2), 3.0)
    assert guidance_energy(uncond + guidance, uncond).flatten().tolist() == [0.0, 1.0, 5.0, 10.0]
    # 12 - 10 E/10 = 12, 11, 7, 2, and 3 + that times the guidance.
    expected_map = torch.tensor([12.0, 11.0, 7.0, 2.0]).reshape(1, 1, 2, 2)
    expected = torch.tensor([[3.0, 14.0, 10.0, -1.0], [3.0, -8.0, 24.0, 11.0]]).reshape(1, 2, 2, 2)
    torch.testing.assert_close(scale_map(uncond + guidance, uncond, 2.0, 12.0), expected_map, rtol=1e-6, atol=0)
    torch.testing.assert_close(samg(uncond + guidance, uncond, 2.0, 12.0), expected, rtol=2e-6, atol=0)


def test_quantile_by_hand():
    # Energies 0, 1, ..., 100: the 1 % and 99 % quantiles are 1 and 99, so that 100 - 98 (E - 1)/98 = 101 - E between.
    cond, uncond = from_energy(torch.arange(101.0).reshape(1, 1, 101))
    expected = torch.cat([torch.tensor([100.0]), torch.arange(100.0, 1.0, -1.0), torch.tensor([2.0])])
    found = scale_map(cond, uncond, 2.0, 100.0, normalize="quantile").flatten()
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=0)


def test_quantile_on_a_selection_by_hand():
    # 4096 energies 0, 1, ...: at least every 4th is looked at, of 64 x 64 every 3rd: 0, 3, ..., 4095, which are 1366.
    # 13 left out at each end leave 39 to 4056.
    energy = torch.arange(4096.0).reshape(1, 64, 64)
    found = scale_map(*from_energy(energy), 39.0, 4056.0, normalize="quantile").flatten()  # Omega = 39 + 4056 - E
    torch.testing.assert_close(found, (4095.0 - energy.flatten()).clamp(39.0, 4056.0), rtol=1e-5, atol=0)


PATTERNS = {
    "noise": lambda y, x, noise: noise.square(),
    "ramp": lambda y, x, noise: y + 0.1 * x,
    "hill": lambda y, x, noise: torch.exp(-((x - 0.3) ** 2 + (y - 0.6) ** 2) / 0.3),
    "waves": lambda y, x, noise: 2.0 + (40.0 * x).sin() + (23.0 * y).cos(),
}


@pytest.mark.parametrize("spatial", [(128, 128), (104, 152), (90, 160), (5, 48, 64)])
@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("seed", range(3))
def test_about_1_percent_lies_beyond_either_quantile(spatial, pattern, seed):
    noise = torch.randn(spatial, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    y, x = torch.meshgrid(*(torch.linspace(0, 1, n, dtype=torch.float64) for n in spatial[-2:]), indexing="ij")
    energy = PATTERNS[pattern](y, x, noise).expand(spatial).float()
    found = scale_map(*from_energy(energy[None]), W_MIN, W_MAX, normalize="quantile")
    assert ((found == W_MIN).float().mean() - 0.01).abs() < 0.01  # 3 standard deviations
    assert ((found == W_MAX).float().mean() - 0.01).abs() < 0.01


@pytest.mark.parametrize("period", [2, 4, 8, 16, 32])
@pytest.mark.parametrize("dim", [0, 1])
def test_quantile_misses_no_column_and_no_row(period, dim):
    for phase in range(period):
        energy = torch.ones(128, 128)
        energy.movedim(dim, 0)[phase::period] = 9.0
        found = scale_map(*from_energy(energy[None]), W_MIN, W_MAX, normalize="quantile")[0, 0]
        assert torch.equal(found, torch.where(energy == 9.0, W_MIN, W_MAX))


@pytest.mark.parametrize(
    ("w_min", "w_max", "expected"),
    [
        (3.0, 12.0, [3.0, 5.0, 9.0, 12.0, 12.0]),  # 1 + 2 (1, 2, 4, 8, inf) = 3, 5, 9, 17, inf
        (0.5, 4.0, [1.5, 2.0, 3.0, 4.0, 4.0]),  # 0.5 is as far from 1 as 1.5: 1 + 0.5 (1, 2, 4, 8, inf)
        (-1.0, 2.0, [2.0, 2.0, 2.0, 2.0, 2.0]),  # 1 + 2 (1, ...) is beyond w_max everywhere
        (1.0, 4.0, [1.0, 1.0, 1.0, 1.0, 1.0]),  # no distance from 1 is allowed
        (0.0, 0.5, [0.5, 0.5, 0.5, 0.5, 0.5]),
    ],
)
def test_bound_by_hand(w_min, w_max, expected):
    cond, uncond = from_energy([[[16.0, 4.0, 1.0, 0.25, 0.0]]])
    found = scale_map(cond, uncond, w_min, w_max, curve="bound").flatten()
    torch.testing.assert_close(found, torch.tensor(expected), rtol=1e-6, atol=0)


def test_clip_shares_one_range_and_frame_does_not():
    cond, uncond = from_energy([[[[0.0, 1.0]], [[0.0, 4.0]]]])  # (1, 2 frames, 1, 2)
    clip, frame = (scale_map(cond, uncond, 2.0, 6.0, scope=scope).flatten().tolist() for scope in ("clip", "frame"))
    assert clip == [6.0, 5.0, 6.0, 2.0]
    assert frame == [6.0, 2.0, 6.0, 2.0]


@pytest.mark.parametrize(("normalize", "curve"), PAIRS)
def test_frame_scope_treats_each_frame_as_an_image(normalize, curve):
    cond, uncond = predictions((2, 4, 3, 13, 9))
    options = {"normalize": normalize, "curve": curve, "scope": "frame"}
    video = scale_map(cond, uncond, W_MIN, W_MAX, **options)
    for f in range(3):
        image = scale_map(cond[:, :, f], uncond[:, :, f], W_MIN, W_MAX, **options)
        torch.testing.assert_close(video[:, :, f], image, rtol=1e-6, atol=0)
        clip = scale_map(cond[:, :, f], uncond[:, :, f], W_MIN, W_MAX, normalize, curve, "clip")
        assert torch.equal(image, clip)


@pytest.mark.parametrize(("normalize", "curve", "scope"), SETTINGS)
def test_a_factor_per_sample_leaves_the_map_alone(normalize, curve, scope):
    guidance = predictions((5, 4, 3, 13, 9))[0]
    factor = torch.tensor([1e-4, 0.03, -1.0, 70.0, 1e4]).reshape(-1, 1, 1, 1, 1)
    uncond = torch.zeros_like(guidance)
    plain = scale_map(guidance, uncond, W_MIN, W_MAX, normalize, curve, scope)
    scaled = scale_map(guidance * factor, uncond, W_MIN, W_MAX, normalize, curve, scope)
    torch.testing.assert_close(scaled, plain, rtol=2e-6, atol=0)


# What each kind of model predicts, given the clean latent, x = clean + sigma noise and sigma.
SPACES = {
    "denoised": lambda clean, x, sigma: clean,
    "eps": lambda clean, x, sigma: (x - clean) / sigma,
    "v": lambda clean, x, sigma: (x / (1 + sigma**2) ** 0.5 - (1 + sigma**2) ** 0.5 * clean) / sigma,
    "flow": lambda clean, x, sigma: (x / (1 + sigma) - clean) / (sigma / (1 + sigma)),
}


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("sigma", [0.03, 0.9, 14.6])
@pytest.mark.parametrize(("normalize", "curve", "scope"), SETTINGS)
def test_every_prediction_space_gives_one_map(space, sigma, normalize, curve, scope):
    generator = torch.Generator().manual_seed(1)
    clean_cond, clean_uncond, noise = torch.randn((3, 1, 4, 3, 13, 9), generator=generator, dtype=torch.float64)
    x = clean_cond + sigma * noise
    cond, uncond = (SPACES[space](clean, x, sigma).float() for clean in (clean_cond, clean_uncond))
    found = scale_map(cond, uncond, W_MIN, W_MAX, normalize, curve, scope)
    assert_relative(found, reference_map(cond, uncond, normalize, curve, scope), 1e-6)
    # Between spaces the float32 rounding of the predictions counts as well: eps is 14.6 times its difference.
    assert_relative(found, reference_map(clean_cond, clean_uncond, normalize, curve, scope), 2e-5)


def test_one_outlier_decides_minmax_but_not_quantile():
    cond, uncond = predictions((1, 4, 64, 64))
    calm = {normalize: scale_map(cond, uncond, W_MIN, W_MAX, normalize) for normalize in ("minmax", "quantile")}
    cond[0, :, 20, 30] += 1000.0
    hot = {normalize: scale_map(cond, uncond, W_MIN, W_MAX, normalize) for normalize in ("minmax", "quantile")}
    others = torch.ones(64, 64, dtype=torch.bool)
    others[20, 30] = False
    for found in hot.values():
        assert found[0, 0, 20, 30] == W_MIN
    assert calm["minmax"][0, 0, others].min() == W_MIN
    assert hot["minmax"][0, 0, others].min() > W_MAX - 1e-3 * (W_MAX - W_MIN)
    assert (hot["quantile"] - calm["quantile"])[0, 0, others].abs().max() < 0.01 * (W_MAX - W_MIN)


@pytest.mark.parametrize("curve", ["linear", "bound"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_broken_position_does_not_decide_quantile(value, curve):
    cond, uncond = predictions((1, 4, 64, 64))
    calm = scale_map(cond, uncond, W_MIN, W_MAX, "quantile", curve)
    cond[0, 0, 0, 0] = value  # the first position, which is always looked at
    found = scale_map(cond, uncond, W_MIN, W_MAX, "quantile", curve)
    assert (found - calm).flatten()[1:].abs().max() < 0.02 * (W_MAX - W_MIN)


@pytest.mark.parametrize("shape", [(2, 4, 13, 9), (2, 4, 3, 13, 9), (2, 1, 1, 1)])
@pytest.mark.parametrize("guidance", [0.0, 1e-30, 1e-4, 1.0, 1e4])
@pytest.mark.parametrize(("normalize", "curve", "scope"), SETTINGS)
def test_equal_energy_everywhere(shape, guidance, normalize, curve, scope):
    uncond = predictions(shape)[1] if guidance == 0.0 else torch.zeros(shape)
    cond = uncond + guidance
    expected = W_MAX if curve == "linear" else W_MIN
    found = scale_map(cond, uncond, W_MIN, W_MAX, normalize, curve, scope)
    torch.testing.assert_close(found, torch.full_like(found, expected), rtol=1e-6, atol=0)
    if curve == "linear":
        assert found.unique().tolist() == [W_MAX]
    guided = samg(cond, uncond, W_MIN, W_MAX, normalize, curve, scope)
    if guidance == 0.0:
        assert torch.equal(guided, uncond)
    else:
        torch.testing.assert_close(guided, torch.full_like(guided, expected * guidance), rtol=1e-6, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize(("normalize", "curve", "scope"), SETTINGS)
def test_equal_predictions_come_back_bit_for_bit(dtype, normalize, curve, scope):
    cond = predictions((2, 4, 3, 13, 9), dtype=dtype)[0]
    # Only float32 is carried inside, so that a float64 prediction has to be one.
    cond = cond.float().to(dtype)
    assert torch.equal(samg(cond, cond.clone(), W_MIN, W_MAX, normalize, curve, scope), cond)


def test_rounding_of_an_equal_energy_is_not_blown_up_to_a_pattern():
    uncond = torch.zeros(1, 4, 64, 64)
    cond = torch.ones_like(uncond) + torch.arange(uncond.numel()).remainder(7).lt(3).view_as(uncond) * 2.0**-23
    assert guidance_energy(cond, uncond).unique().numel() > 1
    assert scale_map(cond, uncond, W_MIN, W_MAX).min() > W_MAX - 0.01 * (W_MAX - W_MIN)


@pytest.mark.parametrize(("normalize", "curve"), PAIRS)
def test_guidance_at_a_single_position(normalize, curve):
    energy = torch.zeros(1, 20, 30)
    energy[0, 3, 4] = 2.0  # the 99 % quantile is 0: the range of energies is empty, yet this position is outside it
    expected = torch.full((1, 1, 20, 30), W_MAX)
    expected[0, 0, 3, 4] = W_MIN
    if (normalize, curve) == ("quantile", "bound"):
        expected.fill_(W_MIN)  # nowhere is the energy below the quantile that bound measures against
    found = scale_map(*from_energy(energy), W_MIN, W_MAX, normalize, curve)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("w", [0.1, 1.0, 7.3])
@pytest.mark.parametrize(("normalize", "curve", "scope"), SETTINGS)
def test_equal_scales_give_a_constant_map_and_plain_cfg(w, normalize, curve, scope):
    cond, uncond = predictions((2, 4, 3, 13, 9))
    found = scale_map(cond, uncond, w, w, normalize, curve, scope)
    assert torch.equal(found, torch.full_like(found, w))
    plain = uncond.double() + w * (cond.double() - uncond.double())
    scale = (uncond.abs() + w * (cond - uncond).abs()).double().numpy()
    assert_relative(samg(cond, uncond, w, w, normalize, curve, scope), plain.numpy(), 1e-6, scale=scale)


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(SETTINGS),
    st.floats(-3.0, 20.0),
    st.floats(0.0, 20.0),
    st.integers(0, 2**31 - 1),
    st.floats(0.0, 12.0),
)
def test_the_map_stays_in_range_and_falls_with_the_energy(options, w_min, width, seed, decades):
    generator = torch.Generator().manual_seed(seed)
    exponents = decades * (torch.rand((1, 4, 3, 5, 4), generator=generator) - 0.5)
    guidance = torch.randn(exponents.shape, generator=generator) * 10.0**exponents
    found = scale_map(guidance, torch.zeros_like(guidance), w_min, w_min + width, *options)
    low, high = torch.tensor([w_min, w_min + width])
    assert ((found >= low) & (found <= high)).all()
    energy = guidance_energy(guidance, torch.zeros_like(guidance))
    rows = (energy[0, 0], found[0, 0]) if options[2] == "frame" else (energy.flatten(1), found.flatten(1))
    for e, w in zip(rows[0].flatten(1), rows[1].flatten(1), strict=True):
        assert (w[e.argsort()].diff() <= 0.0).all()


@pytest.mark.parametrize("spatial", [(1, 1), (7, 5), (24, 32), (3, 13, 9), (2, 1, 1)])
@pytest.mark.parametrize("channels", [1, 4, 16])
@pytest.mark.parametrize(("normalize", "curve", "scope"), SETTINGS)
def test_a_sample_depends_on_itself_alone(spatial, channels, normalize, curve, scope):
    cond, uncond = predictions((4, channels, *spatial))
    for function in (scale_map, samg):
        together = function(cond, uncond, W_MIN, W_MAX, normalize, curve, scope)
        alone = [
            function(c[None], u[None], W_MIN, W_MAX, normalize, curve, scope)
            for c, u in zip(cond, uncond, strict=True)
        ]
        assert torch.equal(together, torch.cat(alone))


@pytest.mark.parametrize("channels", [1, 4])
@pytest.mark.parametrize(("normalize", "curve", "scope"), SETTINGS)
def test_arguments_are_left_alone(channels, normalize, curve, scope):
    cond, uncond = predictions((2, channels, 3, 13, 9))
    scale = torch.rand(2, 1, 3, 13, 9) + 1.0
    before = [tensor.clone() for tensor in (cond, uncond, scale)]
    guidance_energy(cond, uncond)
    scale_map(cond, uncond, W_MIN, W_MAX, normalize, curve, scope)
    samg(cond, uncond, W_MIN, W_MAX, normalize, curve, scope)
    steer_cond(cond, uncond, scale, 7.5)
    assert all(torch.equal(a, b) for a, b in zip(before, (cond, uncond, scale), strict=True))


@pytest.mark.parametrize(("normalize", "curve", "scope"), SETTINGS)
def test_memory_layout_makes_no_difference(normalize, curve, scope):
    cond, uncond = predictions((2, 4, 13, 10))
    expected = samg(cond, uncond, W_MIN, W_MAX, normalize, curve, scope)
    strided = cond.to(memory_format=torch.channels_last), uncond.transpose(2, 3).contiguous().transpose(2, 3)
    found = samg(*strided, W_MIN, W_MAX, normalize, curve, scope)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


class NoDouble(TorchDispatchMode):
    """Fails on any float64 tensor, which Apple GPUs have not."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in torch.utils._pytree.tree_leaves(result):
            assert getattr(tensor, "dtype", None) != torch.float64, func
        return result


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize(("normalize", "curve", "scope"), SETTINGS)
def test_reads_no_value_on_the_host_and_needs_no_float64(dtype, normalize, curve, scope):
    # A meta tensor has no values: whatever would wait for an accelerator raises here.
    cond = torch.empty((2, 4, 3, 48, 64), dtype=dtype, device="meta")
    with NoDouble():
        guided = samg(cond, torch.empty_like(cond), W_MIN, W_MAX, normalize, curve, scope)
        scale = scale_map(cond, torch.empty_like(cond), W_MIN, W_MAX, normalize, curve, scope)
        steered = steer_cond(cond, torch.empty_like(cond), scale, 7.5)
    assert (guided.shape, guided.dtype, guided.device) == (cond.shape, dtype, cond.device)
    assert (steered.shape, steered.dtype, steered.device) == (cond.shape, dtype, cond.device)
    assert (scale.shape, scale.dtype, scale.device) == ((2, 1, 3, 48, 64), torch.float32, cond.device)


def test_an_empty_batch_stays_empty():
    empty = torch.zeros(0, 4, 8, 8)
    assert samg(empty, empty, W_MIN, W_MAX).shape == (0, 4, 8, 8)


@pytest.mark.parametrize("cfg", [1.0, 7.5, -2.0])
@pytest.mark.parametrize("shape", SHAPES)
def test_steered_cond_makes_plain_cfg_give_samg(cfg, shape):
    cond, uncond = predictions(shape)
    scale = scale_map(cond, uncond, W_MIN, W_MAX)
    steered = steer_cond(cond, uncond, scale, cfg)
    combined = uncond + cfg * (steered - uncond)
    guided = samg(cond, uncond, W_MIN, W_MAX)
    bound = 1e-6 * (uncond.abs() * (1.0 + abs(cfg)) + scale * (cond - uncond).abs())
    assert ((combined - guided).abs() <= bound).all()


@pytest.mark.parametrize("strength", [0.0, 0.25, 1.0])
@pytest.mark.parametrize("options", [("minmax", "linear", "clip"), ("quantile", "bound", "frame")])
@pytest.mark.parametrize("shape", SHAPES)
def test_samg_cond_is_steer_cond_of_the_scale_map(shape, options, strength):
    cond, uncond = predictions(shape)
    given = cond.clone(), uncond.clone()
    steered, energy, scale = samg_cond(cond, uncond, 7.5, (W_MIN, W_MAX), *options, strength)
    assert torch.equal(cond, given[0]) and torch.equal(uncond, given[1])
    assert torch.equal(energy, guidance_energy(cond, uncond))
    full = scale_map(cond, uncond, W_MIN, W_MAX, *options)
    torch.testing.assert_close(scale, 7.5 + strength * (full - 7.5), rtol=2e-6, atol=2e-5)
    torch.testing.assert_close(steered, steer_cond(cond, uncond, scale, 7.5), rtol=1e-6, atol=1e-6)


def test_samg_cond_refuses_what_its_parts_refuse():
    x = torch.zeros(1, 4, 8, 8)
    for cfg in (0.0, float("nan")):
        with pytest.raises(ValueError, match="samg_cond: cfg must be finite and not 0"):
            samg_cond(x, x, cfg, (W_MIN, W_MAX))
    with pytest.raises(ValueError, match="samg_cond: w_min=9"):
        samg_cond(x, x, 7.5, (9.0, 2.0))
    with pytest.raises(ValueError, match="samg_cond: got cond"):
        samg_cond(x, x.half(), 7.5, (W_MIN, W_MAX))


def test_steer_cond_by_hand():
    cond, uncond = torch.tensor([[[[4.0, 4.0]]]]), torch.tensor([[[[2.0, 3.0]]]])
    steered = steer_cond(cond, uncond, torch.tensor([[[[6.0, 2.0]]]]), 4.0)
    assert steered.flatten().tolist() == [5.0, 3.5]  # 2 + 6/4 * 2 and 3 + 2/4 * 1


@pytest.mark.parametrize(("dtype", "roundoff"), [(torch.float16, 2.0**-11), (torch.bfloat16, 2.0**-8)])
def test_steer_cond_keeps_the_dtype(dtype, roundoff):
    cond, uncond = predictions((2, 4, 13, 9), dtype=dtype)
    scale = scale_map(cond, uncond, W_MIN, W_MAX)
    expected = steer_cond(cond.float(), uncond.float(), scale, 7.5)
    found = steer_cond(cond, uncond, scale, 7.5)
    assert found.dtype == dtype
    assert ((found.float() - expected).abs() <= roundoff * expected.abs() + 1e-7).all()


@pytest.mark.parametrize("function", [guidance_energy, scale_map, samg, steer_cond])
def test_predictions_that_do_not_fit_are_refused(function):
    good = torch.zeros(1, 4, 8, 8)

    def call(cond, uncond):
        if function is guidance_energy:
            return function(cond, uncond)
        if function is steer_cond:
            return function(cond, uncond, torch.ones(1, 1, 8, 8), 7.5)
        return function(cond, uncond, W_MIN, W_MAX)

    name = function.__name__
    with pytest.raises(ValueError, match=rf"{name}: got cond \(1, 4, 8, 8\) .*, uncond \(1, 4, 8, 9\) .*; give both"):
        call(good, torch.zeros(1, 4, 8, 9))
    with pytest.raises(ValueError, match=rf"{name}: got cond .* torch.float32, uncond .* torch.float16; give both"):
        call(good, good.half())
    for bad in (good[0], good[None, None], good[:, :0], good[..., :0]):
        with pytest.raises(ValueError, match=rf"{name}: cond is \(.*\) torch.float32; give a floating-point"):
            call(bad, bad)
    with pytest.raises(ValueError, match=rf"{name}: cond is \(1, 4, 8, 8\) torch.int32; give a floating-point"):
        call(good.int(), good.int())


@pytest.mark.parametrize("function", [scale_map, samg])
def test_options_that_mean_nothing_are_refused(function):
    cond, name = torch.zeros(1, 4, 8, 8), function.__name__
    for w_min, w_max in ((8.0, 7.5), (float("nan"), 7.5), (2.0, float("nan")), (2.0, float("inf"))):
        message = rf"{name}: w_min={w_min}, w_max={w_max} are not finite and in order; give w_min <= w_max"
        with pytest.raises(ValueError, match=message):
            function(cond, cond, w_min, w_max)
    with pytest.raises(ValueError, match=rf"{name}: w_min=-inf, w_max=7.5 are not finite"):
        function(cond, cond, -float("inf"), 7.5)
    with pytest.raises(ValueError, match=rf"{name}: normalize is 'Minmax'; choose one of minmax, quantile"):
        function(cond, cond, W_MIN, W_MAX, normalize="Minmax")
    with pytest.raises(ValueError, match=rf"{name}: curve is ''; choose one of linear, bound"):
        function(cond, cond, W_MIN, W_MAX, curve="")
    with pytest.raises(ValueError, match=rf"{name}: scope is 'video'; choose one of clip, frame"):
        function(cond, cond, W_MIN, W_MAX, scope="video")


@pytest.mark.parametrize("cfg", [0, 0.0, -0.0, float("nan"), float("inf")])
def test_steer_cond_refuses_a_cfg_it_cannot_divide_by(cfg):
    cond = torch.zeros(1, 4, 8, 8)
    with pytest.raises(ValueError, match=rf"steer_cond: cfg must be finite and not 0, got {cfg}; without CFG"):
        steer_cond(cond, cond, torch.ones(1, 1, 8, 8), cfg)


@pytest.mark.parametrize("shape", [(1, 4, 8, 8), (1, 1, 8, 9), (2, 1, 8, 8), (1, 1, 1, 8, 8)])
def test_steer_cond_refuses_a_scale_of_another_shape(shape):
    cond = torch.zeros(1, 4, 8, 8)
    with pytest.raises(
        ValueError, match=r"steer_cond: scale is \(.*\), cond \(1, 4, 8, 8\); give \(B, 1, \*spatial\)"
    ):
        steer_cond(cond, cond, torch.ones(shape), 7.5)
