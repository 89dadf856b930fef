"""Stabilise: the guidance it makes, against a plain loop, and what it leaves alone."""

import math

import pytest
import torch

from gimbal.core.stabilise import Factors, stabilised_cond, stabilised_guidance

SHAPES = [(3, 4, 9, 7), (2, 16, 3, 6, 5), (1, 1, 5, 5), (2, 3, 8)]


def states(shape, seed=0, dtype=torch.float32):
    """cond, uncond and the noisy state, as of a model in the middle of a schedule."""
    generator = torch.Generator().manual_seed(seed)
    clean, noise, first, second = torch.randn(4, *shape, generator=generator, dtype=torch.float64)
    cond, uncond = clean + 0.3 * first, clean + 0.3 * second
    return tuple(each.to(dtype) for each in (cond, uncond, clean + 0.8 * noise))


def detailed(plane, fine):
    """A plane's rows: each value away from the mean of the 3 x 3 around it, by `fine`."""
    height, width = len(plane), len(plane[0])
    found = []
    for y in range(height):
        found.append([])
        for x in range(width):
            near = [
                plane[j][i]
                for j in range(max(y - 1, 0), min(y + 2, height))
                for i in range(max(x - 1, 0), min(x + 2, width))
            ]
            coarse = math.fsum(near) / len(near)
            found[-1].append(coarse + fine * (plane[y][x] - coarse))
    return found


def by_hand(cond, uncond, noisy, along, across, fade, fine):
    """One sample, value by value, in Python's floats."""
    c, u, x = (each.double().flatten(1).tolist() for each in (cond, uncond, noisy))
    rows = range(len(c))
    g = [[a - b for a, b in zip(c[i], u[i], strict=True)] for i in rows]
    n = [[z - (a + b) / 2 for a, b, z in zip(c[i], u[i], x[i], strict=True)] for i in rows]
    inner = math.fsum(a * b for i in rows for a, b in zip(g[i], n[i], strict=True))
    share = inner / math.fsum(b * b for i in rows for b in n[i])
    width = cond.shape[-1]
    height = cond.shape[-2] if cond.ndim > 2 else 1
    found = []
    for i in rows:
        rest = [a - share * b for a, b in zip(g[i], n[i], strict=True)]
        r2 = math.fsum(v * v for v in rest) / len(rest)
        faded = [v**3 / (v * v + fade**2 * r2) if v else 0.0 for v in rest]
        lines = [faded[start : start + width] for start in range(0, len(faded), width)]
        planes = [detailed(lines[start : start + height], fine) for start in range(0, len(lines), height)]
        rest = [v for plane in planes for line in plane for v in line]
        found.append([along * share * b + across * v for v, b in zip(rest, n[i], strict=True)])
    return torch.tensor(found, dtype=torch.float64).reshape(cond.shape)


@pytest.mark.parametrize(
    "factors", [(5.0, 1.15, 1.0, 1.25), (2.0, 0.6, 0.5, 1.0), (1.0, 0.5, 0.0, 0.0), (0.0, 1.0, 2.0, 2.0)]
)
@pytest.mark.parametrize("shape", SHAPES)
def test_it_is_the_formula(shape, factors):
    given = states(shape)
    found = stabilised_guidance(*given, Factors(*factors))
    for b in range(shape[0]):
        expected = by_hand(*(each[b] for each in given), *factors)
        torch.testing.assert_close(found[b].double(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_neutral_factors_give_the_guidance_itself(shape):
    cond, uncond, noisy = states(shape)
    torch.testing.assert_close(stabilised_guidance(cond, uncond, noisy, Factors(1.0, 1.0, 0.0, 1.0)), cond - uncond)


def test_half_of_the_rest_is_tangential_damping_to_first_order():
    """TCFG by its definition: the unconditional score keeps its part along the first singular vector of both scores."""
    _, uncond, noisy = states((1, 4, 8, 8), dtype=torch.float64)
    direction = torch.randn(uncond.shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    apart = []
    for size in (1e-2, 1e-3):
        cond = uncond + size * direction
        pair = torch.stack([noisy - uncond, noisy - cond]).flatten(1)
        first = torch.linalg.svd(pair, full_matrices=False).Vh[0]
        damped = noisy - ((pair[0] @ first) * first).view_as(noisy)
        error = stabilised_guidance(cond, uncond, noisy, Factors(1.0, 0.5, 0.0, 1.0)).double() - (cond - damped)
        apart.append(float(error.norm() / (cond - uncond).norm()))
    assert apart[0] < 2e-2 and apart[1] < 2e-3


@pytest.mark.parametrize("cfg", [1.0, 3.0, 7.5, 0.5])
@pytest.mark.parametrize("amount", [0.25, 1.0])
def test_plain_cfg_behind_it_gives_what_it_promises(cfg, amount):
    cond, uncond, noisy = states((2, 4, 8, 8))
    g = cond - uncond
    changed = torch.lerp(g, stabilised_guidance(cond, uncond, noisy), amount)
    steered = stabilised_cond(cond, uncond, noisy, cfg, amount)
    torch.testing.assert_close(uncond + cfg * (steered - uncond), cond + (cfg - 1) * changed, rtol=1e-4, atol=1e-4)


def test_amount_zero_and_cfg_one_are_bit_exact():
    cond, uncond, noisy = states((2, 4, 8, 8), dtype=torch.float16)
    assert torch.equal(stabilised_cond(cond, uncond, noisy, 7.0, 0.0), cond)
    assert torch.equal(stabilised_cond(cond, uncond, noisy, 1.0), cond)


def test_inputs_stay_as_they_are_and_samples_apart():
    given = states((3, 4, 8, 8))
    kept = [each.clone() for each in given]
    whole = stabilised_cond(*given, 7.0)
    assert all(torch.equal(a, b) for a, b in zip(given, kept, strict=True))
    for b in range(3):
        torch.testing.assert_close(whole[b : b + 1], stabilised_cond(*(each[b : b + 1] for each in given), 7.0))
    broken = [each.clone() for each in given]
    broken[0][1, 0, 0, 0] = float("nan")
    found = stabilised_cond(*broken, 7.0)
    assert torch.equal(found[[0, 2]], whole[[0, 2]]) and found[1].isnan().any()


def test_it_does_not_depend_on_the_units():
    cond, uncond, noisy = states((1, 4, 8, 8))
    for factor in (2.0**-8, 2.0**8):
        scaled = stabilised_guidance(factor * cond, factor * uncond, factor * noisy) / factor
        torch.testing.assert_close(scaled, stabilised_guidance(cond, uncond, noisy), rtol=1e-5, atol=1e-6)


def test_nothing_to_guide_or_no_noise_stays_finite():
    cond, uncond, noisy = states((1, 4, 8, 8))
    assert torch.equal(stabilised_guidance(cond, cond, noisy), torch.zeros_like(cond))
    assert stabilised_guidance(cond, uncond, (cond + uncond) / 2).isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_rounded_once(dtype):
    given = states((2, 4, 8, 8), dtype=dtype)
    found = stabilised_cond(*given, 7.0)
    assert found.dtype == dtype
    assert torch.equal(found, stabilised_cond(*(each.float() for each in given), 7.0).to(dtype))


def test_bad_values_are_refused():
    x = torch.zeros(1, 4, 8, 8)
    for name in ("along", "across", "fade", "fine"):
        for value in (-0.1, math.nan, math.inf):
            with pytest.raises(ValueError, match=f"stabilised_guidance: {name}={value} is not a finite number"):
                Factors(**{name: value})
    with pytest.raises(ValueError, match=r"uncond \(1, 4, 8, 9\).*; give two predictions of one noisy state"):
        stabilised_guidance(x, torch.zeros(1, 4, 8, 9), x)
    for bad in (x.int(), x[0, 0], x[:, :0]):
        with pytest.raises(ValueError, match="give floating-point"):
            stabilised_guidance(bad, bad, bad)
    for cfg in (0.0, math.nan):
        with pytest.raises(ValueError, match="stabilised_cond: cfg must be finite and not 0"):
            stabilised_cond(x, x, x, cfg)
    for amount in (-0.5, 1.5, math.nan):
        with pytest.raises(ValueError, match=f"stabilised_cond: amount={amount} is not between 0 and 1"):
            stabilised_cond(x, x, x, 7.0, amount)
