"""micrograin against its formulas in float64, its identities, and what it does with values that are not finite."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gimbal.core import device
from gimbal.core.micrograin import micrograin

FORMS = ["hard", "tanh", "smooth"]
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
ROUNDING = {torch.float16: 2.0**-10, torch.bfloat16: 2.0**-7, torch.float32: 2.0**-20, torch.float64: 2.0**-20}


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def reference(x: torch.Tensor, q_low: float, q_high: float, form: str, alpha: float, knee: float) -> torch.Tensor:
    """QSilk Sec. 3.1 as written, one sample and one element at a time where it branches."""
    samples = []
    for sample in x.float().double().numpy():
        low, high = np.quantile(sample, [q_low, q_high])
        middle, half = (low + high) / 2, (high - low) / 2
        away = sample - middle
        if form == "hard":
            limited = np.clip(sample, low, high)
        elif form == "tanh":
            limited = middle + half * np.tanh(alpha * away / (half + 1e-8))
        else:
            room = (1 - knee) * half
            excess = np.maximum(np.abs(away) - knee * half, 0.0)
            tail = knee * half + excess / (1 + excess / room)
            limited = np.where(excess > 0, middle + np.sign(away) * tail, sample)
        samples.append(torch.from_numpy(limited))
    return torch.stack(samples)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("shape", [(2, 4, 13, 9), (3, 4, 104, 152), (1, 16, 3, 17, 19), (2, 3)])
def test_formula(form, dtype, shape):
    x = (noise(*shape) ** 3).to(dtype)
    limited = micrograin(x, 0.01, 0.98, form)
    assert limited.dtype == dtype and limited.shape == x.shape and limited.device == x.device
    expected = reference(x, 0.01, 0.98, form, 2.0, 0.8)
    scale = expected.abs().max()
    assert (limited.double() - expected).abs().max() <= ROUNDING[dtype] * scale


@settings(max_examples=60, deadline=None)
@given(
    form=st.sampled_from(FORMS),
    size=st.integers(2, 700),
    batch=st.integers(1, 3),
    low=st.floats(0.01, 0.45),
    high=st.floats(0.55, 0.99),
    alpha=st.floats(0.5, 4),
    knee=st.floats(0, 0.99),
    offset=st.sampled_from([0.0, -3.0, 50.0]),
    seed=st.integers(0, 1000),
)
def test_formula_for_any_options(form, size, batch, low, high, alpha, knee, offset, seed):
    x = noise(batch, size, seed=seed) + offset
    expected = reference(x, low, high, form, alpha, knee)
    assert (micrograin(x, low, high, form, alpha, knee).double() - expected).abs().max() <= 2.0**-18 * (
        5 + abs(offset)
    )


def test_by_hand():
    x = torch.tensor([[0.0, 1.0, 2.0, 3.0, 4.0], [10.0, 14.0, 12.0, 11.0, 13.0]])
    # 0.25 and 0.75 are ranks 1 and 3: [1, 3] and [11, 13].
    assert micrograin(x, 0.25, 0.75).tolist() == [[1, 1, 2, 3, 3], [11, 13, 12, 11, 13]]
    # m = 2, d = 1, knee 0.5: room 0.5; the excess at 0 and 4 is 1.5, which becomes 1.5 / (1 + 3) = 0.375,
    # at 1 and 3 it is 0.5, which becomes 0.25.
    smooth = micrograin(x[:1], 0.25, 0.75, "smooth", knee=0.5)
    assert smooth.tolist() == [[2 - 0.875, 2 - 0.75, 2.0, 2 + 0.75, 2 + 0.875]]


def test_defaults_are_the_papers():
    x = noise(2, 4, 64, 64)
    assert torch.equal(micrograin(x), micrograin(x, 0.001, 0.999, "hard", 2.0, 0.8))
    assert torch.equal(micrograin(x, form="tanh"), micrograin(x, 0.001, 0.999, "tanh", 2.0))
    assert torch.equal(micrograin(x, form="smooth"), micrograin(x, 0.001, 0.999, "smooth", knee=0.8))
    assert (micrograin(x) != x).sum().item() == 2 * 2 * 17  # two samples, two sides, the ranks 0 to 16 below 16.383


@pytest.mark.parametrize("dtype", DTYPES)
def test_hard_from_0_to_1_is_the_identity(dtype):
    x = noise(2, 4, 40, 40).to(dtype)
    x[0, 0, 0, :3] = torch.tensor([torch.inf, -torch.inf, -0.0], dtype=dtype)
    assert torch.equal(micrograin(x, 0.0, 1.0), x)


@pytest.mark.parametrize("dtype", DTYPES)
def test_hard_leaves_what_is_inside_bit_for_bit(dtype):
    x = noise(2, 4, 40, 40).to(dtype)
    limited = micrograin(x, 0.01, 0.99)
    changed = limited != x
    assert 0.018 < changed.double().mean() < 0.022
    assert limited.flatten(1).amin(1).tolist() == [
        sample[c].min().item() for sample, c in zip(limited, changed, strict=True)
    ]


def test_a_quantile_of_0_or_1_leaves_its_side_alone():
    x = noise(2, 4, 40, 40)
    x[:, 0, 0, 0], x[:, 0, 0, 1] = torch.inf, -torch.inf
    only_high, only_low, both = micrograin(x, 0.0, 0.99), micrograin(x, 0.01, 1.0), micrograin(x, 0.01, 0.99)
    low, high = both.flatten(1).amin(1).view(2, 1, 1, 1), both.flatten(1).amax(1).view(2, 1, 1, 1)
    assert torch.equal(only_high, torch.minimum(x, high)) and torch.equal(only_low, torch.maximum(x, low))
    assert (only_high[:, 0, 0, 1] == -torch.inf).all() and (only_low[:, 0, 0, 0] == torch.inf).all()


def test_knee_1_is_hard_and_leaves_nothing_to_divide_by_zero():
    x = noise(2, 4, 40, 40)
    assert torch.equal(micrograin(x, 0.01, 0.99, "smooth", knee=1.0), micrograin(x, 0.01, 0.99))
    nearly = micrograin(x, 0.01, 0.99, "smooth", knee=1.0 - 1e-7)
    torch.testing.assert_close(nearly, micrograin(x, 0.01, 0.99), rtol=0, atol=1e-5)


def test_smooth_is_the_identity_inside_the_knee_and_has_unit_slope_there():
    x = torch.linspace(-2, 2, 40001)[None]
    limited = micrograin(x, 0.25, 0.75, "smooth", knee=0.6)  # the range is -1 to 1
    inside = x.abs() < 0.6 - 1e-5
    assert torch.equal(limited[inside], x[inside])
    assert (limited[x.abs() > 0.6 + 1e-3] != x[x.abs() > 0.6 + 1e-3]).all()
    assert limited.abs().max() < 1.0
    slope = limited.double().diff() / x.double().diff()
    assert slope.diff().abs().max() < 0.01  # no kink; a hard clamp has 1
    assert slope.min() > 0


def test_tanh_multiplies_contrast_at_the_centre_by_alpha():
    x = torch.linspace(-2, 2, 4001)[None]
    for alpha in (0.5, 2.0):
        slope = micrograin(x, 0.25, 0.75, "tanh", alpha)[0, 1999:2002].double().diff() / 1e-3
        assert slope == pytest.approx([alpha, alpha], rel=1e-3)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("value", [0.0, 0.1, -300.0, 1e-7, 6e4])
def test_a_constant_sample_comes_back_unchanged(form, dtype, value):
    x = torch.full((2, 4, 9, 13), value, dtype=dtype)
    assert torch.equal(micrograin(x, form=form), x)
    assert torch.equal(micrograin(x[:, :1, :1, :1], form=form), x[:, :1, :1, :1])


@pytest.mark.parametrize("form", FORMS)
def test_a_lone_outlier_among_equals_joins_them(form):
    x = torch.full((1, 4, 40, 40), 0.3)
    x[0, 0, 0, 0] = 9.0
    assert torch.equal(micrograin(x, 0.01, 0.99, form), torch.full_like(x, 0.3))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_samples_are_independent(form, dtype):
    x = (noise(5, 4, 31, 33) * torch.tensor([1.0, 1e-3, 1e3, 0.0, 1.0]).view(5, 1, 1, 1)).to(dtype)
    x[4, 0, 0, :2] = torch.tensor([torch.nan, torch.inf], dtype=dtype)
    together = micrograin(x, 0.01, 0.99, form)
    one_by_one = torch.cat([micrograin(sample[None], 0.01, 0.99, form) for sample in x])
    assert together[4].isnan().sum() == 1
    assert torch.equal(together.nan_to_num(7.0), one_by_one.nan_to_num(7.0))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("knee", [0.0, 0.8, 1.0])
def test_nan_stays_where_it_is_and_infinities_go_to_the_bounds(form, dtype, knee):
    clean = noise(2, 4, 40, 40).to(dtype)
    x = clean.clone()
    x[0, 0, 0, :4] = torch.tensor([torch.nan, torch.inf, -torch.inf, torch.nan], dtype=dtype)
    limited = micrograin(x, 0.01, 0.99, form, knee=knee)
    assert torch.equal(limited.isnan(), x.isnan())
    assert not limited.isinf().any()
    finite = x[0][x[0].isfinite()].double().numpy()
    bound = torch.from_numpy(np.quantile(finite, [0.99, 0.01])).float()
    torch.testing.assert_close(limited[0, 0, 0, 1:3].float(), bound, rtol=ROUNDING[dtype], atol=0)
    assert torch.equal(limited[1], micrograin(clean[1:], 0.01, 0.99, form, knee=knee)[0])


@pytest.mark.parametrize("form", FORMS)
def test_a_sample_without_a_finite_element(form):
    x = torch.tensor([[torch.nan, torch.inf, -torch.inf], [1.0, 1.0, 1.0]])
    limited = micrograin(x, form=form)
    assert limited[0].isnan().tolist() == [True, False, False]
    assert limited[0, 1:].tolist() == [0.0, 0.0] and limited[1].tolist() == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("form", FORMS)
def test_values_near_the_limit_of_float32_stay_finite(form):
    x = noise(2, 4, 40, 40).clamp(-3, 3) * 1e38
    limited = micrograin(x, 0.01, 0.99, form)
    assert limited.isfinite().all()
    torch.testing.assert_close(limited / 1e38, micrograin(x / 1e38, 0.01, 0.99, form), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("form", FORMS)
def test_layouts_and_the_argument(form):
    x = noise(2, 4, 31, 33)
    before = x.clone()
    expected = micrograin(x, 0.01, 0.99, form)
    assert torch.equal(x, before)
    assert torch.equal(micrograin(x.to(memory_format=torch.channels_last), 0.01, 0.99, form), expected)
    assert torch.equal(micrograin(torch.stack([x, x + 1], -1)[..., 0], 0.01, 0.99, form), expected)
    assert torch.equal(micrograin(x[:1].expand(3, -1, -1, -1), 0.01, 0.99, form), expected[:1].expand(3, -1, -1, -1))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_path_for_accelerators_gives_the_same_bits(form, dtype, monkeypatch):
    x = noise(3, 4, 40, 41).to(dtype)
    x[1, 0, 0, :2] = torch.tensor([torch.inf, -torch.inf], dtype=dtype)
    ranges = [(0.001, 0.999), (0.0, 0.99), (0.01, 1.0)]
    expected = [micrograin(x, *q, form) for q in ranges]
    monkeypatch.setattr(device, "on_host", lambda x: False)
    for q, limited in zip(ranges, expected, strict=True):
        assert torch.equal(micrograin(x, *q, form), limited)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_nothing_waits_for_an_accelerator(form, dtype):
    # The meta device has no values: whatever needs one, .item() or a mask as an index, raises.
    x = torch.empty(2, 4, 3, 40, 40, device="meta", dtype=dtype)
    limited = micrograin(x, form=form)
    assert limited.shape == x.shape and limited.dtype == dtype and limited.device == x.device


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("batch", [1, 2])
def test_gradients_pass_inside_and_stop_at_the_bounds(form, batch):
    x = noise(batch, 4, 40, 40).requires_grad_()
    limited = micrograin(x, 0.01, 0.99, form)
    limited.sum().backward()
    middle, outlier = x[0].abs().argmin(), x[0].abs().argmax()
    slope = {"hard": 1.0, "smooth": 1.0, "tanh": 2.0}[form]
    assert x.grad.view(-1)[middle].item() == pytest.approx(slope, rel=0.01)
    assert 0 <= x.grad.view(-1)[outlier].item() < 0.2


@pytest.mark.parametrize("q", [(-0.1, 0.9), (0.1, 1.1), (0.5, 0.5), (0.9, 0.1), (float("nan"), 0.9)])
def test_quantiles_out_of_order(q):
    with pytest.raises(ValueError, match=r"micrograin: need 0 <= q_low < q_high <= 1, got q_low="):
        micrograin(torch.ones(1, 4), *q)


def test_unknown_form():
    with pytest.raises(ValueError, match=r"micrograin: form is 'soft'; use 'hard', 'tanh' or 'smooth'"):
        micrograin(torch.ones(1, 4), form="soft")


@pytest.mark.parametrize("alpha", [0.0, -1.0, float("inf"), float("nan")])
def test_alpha_out_of_range(alpha):
    with pytest.raises(ValueError, match=r"micrograin: alpha is .*above 0"):
        micrograin(torch.ones(1, 4), form="tanh", alpha=alpha)


@pytest.mark.parametrize("knee", [-0.1, 1.1, float("nan")])
def test_knee_out_of_range(knee):
    with pytest.raises(ValueError, match=r"micrograin: knee is .*between 0 and 1"):
        micrograin(torch.ones(1, 4), form="smooth", knee=knee)


@pytest.mark.parametrize("shape", [(), (4,), (0, 4), (2, 4, 0, 8)])
def test_shapes_without_samples(shape):
    with pytest.raises(ValueError, match=r"micrograin: x has shape .*pass \(B, C, \*spatial\)"):
        micrograin(torch.ones(shape))


def test_whole_numbers_are_refused():
    with pytest.raises(ValueError, match=r"micrograin: x has dtype torch\.int32; convert"):
        micrograin(torch.ones(1, 4, dtype=torch.int32))
