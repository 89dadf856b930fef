"""Simulated quantization against plain loops, values derived by hand, and what rounding must never do."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from gimbal.core.fakequant import linear, low_rank, quantize_activations, quantize_weight, split

GROUPS = [64, 7, 1, 1000, None]  # 96 inputs: shorter last ones, single weights, more than there are
HALF = [torch.float16, torch.bfloat16]


def weights(out=5, inputs=96, seed=0, dtype=torch.float32):
    """Rows of different magnitude."""
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(out, inputs, generator=generator) * torch.logspace(-2, 2, out)[:, None]).to(dtype)


def reference(row, bits):
    """One group, number by number, in Python's floats: (rounded, scale)."""
    q = 2 ** (bits - 1) - 1
    scale = max(abs(value) for value in row) / q
    return [0.0 if scale == 0 else round(value / scale) * scale for value in row], scale


def reference_weight(weight, bits, group):
    inputs = weight.shape[1]
    rows, scales = [], []
    for row in weight.tolist():
        pieces = [reference(row[i : i + (group or inputs)], bits) for i in range(0, inputs, group or inputs)]
        rows.append([value for piece, _ in pieces for value in piece])
        scales.append([scale for piece, scale in pieces for _ in piece])
    return torch.tensor(rows), torch.tensor(scales)


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("group", GROUPS)
def test_weights_match_the_reference(bits, group):
    weight = weights()
    expected, _ = reference_weight(weight, bits, group)
    torch.testing.assert_close(quantize_weight(weight, bits, group), expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("bits", range(4, 9))
def test_activations_match_the_reference(bits):
    x = torch.randn(2, 3, 4, 33, generator=torch.Generator().manual_seed(1))
    expected = [reference(token, bits)[0] for token in x.flatten(0, -2).tolist()]
    torch.testing.assert_close(
        quantize_activations(x, bits), torch.tensor(expected).reshape(x.shape), rtol=1e-6, atol=0
    )


def test_by_hand():
    # 3 bits: -3 to 3. Largest 6, so steps of 2: 5.1 -> 6, 2.9 -> 2, -0.9 -> 0; then largest 3, steps of 1.
    weight = torch.tensor([[6.0, 5.1, 2.9, -0.9, -3.0, 1.4]])
    assert quantize_weight(weight, 3, 4).tolist() == [[6.0, 6.0, 2.0, 0.0, -3.0, 1.0]]
    assert quantize_weight(weight, 3, None).tolist() == [[6.0, 6.0, 2.0, 0.0, -4.0, 2.0]]  # -1.5 rounds to even
    # 2 bits: nothing but the largest, its opposite and 0.
    assert quantize_weight(weight, 2, None).tolist() == [[6.0, 6.0, 0.0, 0.0, 0.0, 0.0]]
    # 4 bits: -7 to 7, each token by itself.
    tokens = torch.tensor([[7.0, -2.4, 0.6], [0.7, 0.12, -0.7]])
    torch.testing.assert_close(
        quantize_activations(tokens, 4), torch.tensor([[7.0, -2.0, 1.0], [0.7, 0.1, -0.7]]), rtol=1e-6, atol=0
    )


@settings(deadline=None, max_examples=60)
@given(
    bits=st.integers(2, 8),
    group=st.one_of(st.none(), st.integers(1, 40)),
    shape=st.tuples(st.integers(1, 4), st.integers(1, 50)),
    exponent=st.integers(-20, 20),
    seed=st.integers(0, 1000),
)
def test_properties(bits, group, shape, exponent, seed):
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 2.0**exponent
    rounded = quantize_weight(weight, bits, group)
    _, scales = reference_weight(weight, bits, group)
    assert ((rounded - weight).abs() <= (0.5 + 1e-5) * scales).all()  # by half a step at most
    assert (rounded.abs() <= weight.abs().amax() * (1 + 1e-6)).all()
    torch.testing.assert_close(quantize_weight(rounded, bits, group), rounded, rtol=1e-6, atol=0)  # settled
    assert torch.equal(quantize_weight(-weight, bits, group), -rounded)
    assert torch.equal(quantize_weight(weight * 0.125, bits, group), rounded * 0.125)
    for row, whole in zip(quantize_weight(weight.flip(0), bits, group), rounded.flip(0), strict=True):
        assert torch.equal(row, whole)  # a row is its own
    levels = (rounded[0, : group or shape[1]] / scales[0, 0]).unique()
    assert len(levels) <= 2**bits - 1


@pytest.mark.parametrize("group", GROUPS)
def test_more_bits_are_nearer(group):
    weight = weights(out=16)
    errors = [float((quantize_weight(weight, bits, group) - weight).norm()) for bits in range(2, 9)]
    if group == 1:
        assert max(errors) < 1e-5 * float(weight.norm())  # every weight is its own largest
    else:
        assert errors == sorted(errors, reverse=True)
        assert 1.7 < (errors[0] / errors[-1]) ** (1 / 6) < 3.0  # about half for each bit


def test_smaller_groups_are_nearer():
    weight = torch.randn(32, 256, generator=torch.Generator().manual_seed(2))
    errors = [float((quantize_weight(weight, 4, group) - weight).norm()) for group in (16, 64, 256)]
    assert errors == sorted(errors)


def test_an_outlier_costs_its_own_group_alone():
    weight = weights(out=1, inputs=128)
    calm = quantize_weight(weight, 4, 64)
    weight[0, 3] = 1000.0
    hot = quantize_weight(weight, 4, 64)
    assert torch.equal(hot[0, 64:], calm[0, 64:])
    assert hot[0, :64].count_nonzero() == 1


@pytest.mark.parametrize("dtype", [*HALF, torch.float64])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_other_dtypes_lose_only_the_rounding_of_the_result(dtype, bits):
    weight = weights(dtype=dtype)
    rounded = quantize_weight(weight, bits)
    assert rounded.dtype == dtype
    assert torch.equal(rounded, quantize_weight(weight.float(), bits).to(dtype))
    x = weights(dtype=dtype)
    if bits >= 4:
        assert torch.equal(quantize_activations(x, bits), quantize_activations(x.float(), bits).to(dtype))


@pytest.mark.parametrize("dtype", [torch.float32, *HALF])
def test_large_half_precision_values_do_not_overflow(dtype):
    x = torch.full((2, 64), 60000.0, dtype=dtype)
    for rounded in (quantize_weight(x, 3), quantize_activations(x, 4)):
        torch.testing.assert_close(rounded, x)


def test_nothing_but_zeros_stays_so():
    weight = weights()
    weight[:, :64] = 0.0
    weight[2] = 0.0
    rounded = quantize_weight(weight, 4)
    assert not rounded[:, :64].any() and not rounded[2].any() and rounded[3, 64:].any()
    assert not quantize_activations(torch.zeros(2, 3, 8), 4).any()
    assert not linear(torch.zeros(1, 96), split(weight * 0, 4, rank=4), activation_bits=4).any()


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_broken_value_breaks_its_own_group_alone(value):
    weight = weights()
    calm = quantize_weight(weight, 4)
    weight[1, 70] = value
    broken = quantize_weight(weight, 4)
    assert broken[1, 64:].isnan().all()
    broken[1, 64:] = calm[1, 64:]
    assert torch.equal(broken, calm)
    with pytest.raises(ValueError, match=r"low_rank: the weight holds NaN"):
        low_rank(weight, 2)


def test_tokens_are_their_own():
    x = torch.randn(4, 6, 32, generator=torch.Generator().manual_seed(3)) * torch.logspace(-3, 3, 4)[:, None, None]
    together = quantize_activations(x, 4)
    assert torch.equal(together, torch.cat([quantize_activations(sample, 4) for sample in x.split(1)]))
    assert torch.equal(together[:, 2], quantize_activations(x[:, 2], 4))


@pytest.mark.parametrize("shape", [(40, 24), (24, 40), (32, 32), (1, 9), (9, 1)])
@pytest.mark.parametrize("magnitude", [1e-20, 1.0, 1e20])
def test_low_rank_is_the_best_of_its_rank(shape, magnitude):
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(4)) * magnitude
    values = np.linalg.svd(weight.double().numpy(), compute_uv=False)
    for rank in {1, min(3, min(shape)), min(shape)}:
        found = low_rank(weight, rank)
        assert found.A.shape == (rank, shape[1]) and found.B.shape == (shape[0], rank)
        left = weight.double().numpy() - found.B.double().numpy() @ found.A.double().numpy()
        np.testing.assert_allclose(
            np.linalg.norm(left), np.linalg.norm(values[rank:]), rtol=1e-4, atol=1e-5 * values[0]
        )


def test_low_rank_is_exact_on_such_a_matrix_and_repeats():
    generator = torch.Generator().manual_seed(5)
    weight = torch.randn(50, 3, generator=generator) @ torch.randn(3, 70, generator=generator)
    one, other = low_rank(weight, 3), low_rank(weight, 3)
    torch.testing.assert_close(one.B @ one.A, weight, rtol=1e-4, atol=1e-4)
    assert torch.equal(one.A, other.A) and torch.equal(one.B, other.B)
    state = torch.get_rng_state()
    low_rank(weight, 2)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_branch_takes_the_outlying_directions_away():
    """Why SVDQuant has one: one strong direction spoils the scales of every group."""
    generator = torch.Generator().manual_seed(6)
    weight = torch.randn(64, 256, generator=generator)
    strong = torch.outer(torch.randn(64, generator=generator), torch.randn(256, generator=generator))
    weight += 10 * strong

    def error(rank):
        found = split(weight, 4, rank=rank)
        whole = found.residual if found.branch is None else found.residual + found.branch.B @ found.branch.A
        return float((whole - weight).norm())

    assert error(1) < 0.3 * error(0)
    assert error(16) < error(1)


@pytest.mark.parametrize("dtype", [torch.float32, *HALF])
@pytest.mark.parametrize("rank", [0, 4])
@pytest.mark.parametrize("activation_bits", [None, 4, 8])
@pytest.mark.parametrize("group", [64, None])
def test_linear_matches_the_reference(dtype, rank, activation_bits, group):
    weight, bias = weights(dtype=dtype), torch.linspace(-1, 1, 5).to(dtype)
    x = torch.randn(2, 7, 96, generator=torch.Generator().manual_seed(7)).to(dtype)
    found = split(weight, 4, group, rank)
    assert found.residual.dtype == dtype
    exact, branch = weight.double(), torch.zeros(5, 96, dtype=torch.float64)
    if rank:
        branch = found.branch.B.double() @ found.branch.A.double()
    residual, _ = reference_weight((exact - branch).float(), 4, group)
    tokens = x.float().flatten(0, -2)
    if activation_bits:
        tokens = torch.tensor([reference(token, activation_bits)[0] for token in tokens.tolist()])
    expected = tokens.double() @ residual.double().T + x.double().flatten(0, -2) @ branch.T + bias.double()
    y = linear(x, found, bias, activation_bits)
    assert y.shape == (2, 7, 5) and y.dtype == dtype
    # A product of 96 terms rounded to the dtype, relative to what they add up to without their signs.
    scale = tokens.double().abs() @ residual.double().abs().T + x.double().flatten(0, -2).abs() @ branch.abs().T + 1
    roundoff = {torch.float32: 1e-6, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}[dtype]
    assert ((y.double().flatten(0, -2) - expected).abs() <= roundoff * scale).all()


def test_split_without_rounding_to_speak_of_is_the_layer_itself():
    weight, x = weights(), weights(out=3, seed=8)
    torch.testing.assert_close(linear(x, split(weight, 8, 1)), F.linear(x, weight), rtol=1e-5, atol=1e-3)


def test_a_branch_made_earlier_saves_the_search():
    weight = weights()
    first = split(weight, 4, rank=3)
    again = split(weight, 4, rank=3, branch=first.branch)
    assert again.branch is first.branch and torch.equal(again.residual, first.residual)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: quantize_weight(weights(), 1), r"quantize_weight: bits is 1; use a whole number from 2 to 8"),
        (lambda: quantize_weight(weights(), 9), r"bits is 9"),
        (lambda: quantize_weight(weights(), 4.0), r"bits is 4.0"),
        (lambda: quantize_weight(weights(), 4, 0), r"quantize_weight: group is 0; use a whole number from 1, or None"),
        (lambda: quantize_weight(weights(), 4, 6.5), r"group is 6.5"),
        (lambda: quantize_weight(weights()[0], 4), r"weight is torch.float32 \(96,\); pass floats of \(out, in\)"),
        (lambda: quantize_weight(weights().long(), 4), r"weight is torch.int64"),
        (lambda: quantize_weight(weights()[:0], 4), r"weight is torch.float32 \(0, 96\)"),
        (
            lambda: quantize_activations(weights(), 3),
            r"quantize_activations: bits is 3; use a whole number from 4 to 8",
        ),
        (lambda: quantize_activations(weights(), 16), r"bits is 16"),
        (lambda: quantize_activations(weights().long(), 4), r"x is torch.int64 \(5, 96\)"),
        (lambda: low_rank(weights(), 0), r"low_rank: rank is 0; a weight of \(5, 96\) has 1 to 5"),
        (lambda: low_rank(weights(), 6), r"rank is 6"),
        (lambda: split(weights(), 4, rank=-1), r"rank is -1"),
        (lambda: split(weights(), 0, rank=0), r"bits is 0"),
    ],
)
def test_bad_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call()
