"""A value that is not finite reaches its own tiles, tokens and steps, and nothing else."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gimbal.core import device
from gimbal.core.aqclip import AQClipState, aqclip
from gimbal.core.confidence import entropy_confidence, gradient_confidence, tile_confidence
from gimbal.core.tiles import tile_grid

FORMS = [(corridor, form) for corridor in ("paper", "widening") for form in ("tanh", "smooth")]
BROKEN = [math.nan, math.inf, -math.inf]


@pytest.fixture(params=["cpu", "accelerator"])
def path(request, monkeypatch):
    if request.param == "accelerator":
        monkeypatch.setattr(device, "on_host", lambda x: False)


def noise(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def touched(shape, tile, stride, places):
    """(H, W) bool: positions of all tiles that one of the places lies in, tile by tile."""
    grid = tile_grid(*shape, tile, stride)
    found = torch.zeros(shape, dtype=torch.bool)
    for top in grid.rows.starts:
        for left in grid.columns.starts:
            bottom, right = top + grid.rows.tile, left + grid.columns.tile
            if any(top <= y < bottom and left <= x < right for y, x in places):
                found[top:bottom, left:right] = True
    return found


@pytest.mark.parametrize(("corridor", "form"), FORMS)
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_only_the_tiles_of_a_broken_value_change(corridor, form, data):
    height, width, tile = (data.draw(st.integers(a, b)) for a, b in ((3, 40), (3, 40), (2, 16)))
    stride, frames = data.draw(st.integers(1, tile)), data.draw(st.sampled_from([None, 2]))
    y, x = data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))
    value = data.draw(st.sampled_from(BROKEN))
    accelerator = data.draw(st.booleans())
    clean = noise(2, 3, *(() if frames is None else (frames,)), height, width, seed=data.draw(st.integers(0, 99)))
    broken = clean.clone()
    broken[0, 1, ..., y, x] = value
    if frames is not None:
        broken[0, :, 0] = clean[0, :, 0]
    grid = tile_grid(height, width, tile, stride).shape
    confidence = torch.rand(2, *(() if frames is None else (frames,)), *grid)
    options = {"tile": tile, "stride": stride, "corridor": corridor, "form": form, "confidence": confidence}
    with pytest.MonkeyPatch.context() as patch:
        if accelerator:
            patch.setattr(device, "on_host", lambda x: False)
        expected, found = aqclip(clean, **options), aqclip(broken, **options)
    own = broken != clean
    assert (found.isfinite() | own).all()
    untouched = ~touched((height, width), tile, stride, [(y, x)]).expand_as(clean).clone()
    untouched[1] = True
    if frames is not None:
        untouched[:, :, 0] = True
    torch.testing.assert_close(found[untouched], expected[untouched], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("corridor", "form"), FORMS)
@pytest.mark.parametrize("value", BROKEN)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_with_the_gradients_confidence_too(path, corridor, form, value, dtype):
    x = noise(1, 4, 64, 64).to(dtype)
    x[0, 2, 20, 21] = value
    found = aqclip(x, 16, 8, corridor=corridor, form=form)
    assert not found[0, 2, 20, 21].isfinite()
    assert found.isfinite().sum() == x.numel() - 1
    assert (found != x).sum() > 1  # the others are clipped


@pytest.mark.parametrize("form", ["tanh", "smooth"])
def test_a_tile_with_a_broken_value_comes_back_as_it_was(path, form):
    x = 5.0 * noise(1, 2, 16, 32)
    x[0, 0, 3, 3] = torch.nan
    found = aqclip(x, 16, 16, form=form)
    assert torch.equal(found[..., :16].nan_to_num(7.0), x[..., :16].nan_to_num(7.0))
    assert not torch.equal(found[..., 16:], x[..., 16:])


@pytest.mark.parametrize(("corridor", "form"), FORMS)
@pytest.mark.parametrize("beta", [0.0, 0.8])
@pytest.mark.parametrize("value", BROKEN)
@pytest.mark.parametrize("when", [0, 1])
def test_later_steps_are_not_poisoned(path, corridor, form, beta, value, when):
    steps = [noise(1, 3, 24, 24, seed=seed) for seed in range(4)]
    confidence = torch.full((1, 5, 5), 0.5)

    def last(inputs):
        state = AQClipState()
        for x in inputs:
            found = aqclip(x, 8, 4, corridor=corridor, form=form, ema_beta=beta, state=state, confidence=confidence)
        return found

    broken = [x.clone() for x in steps]
    broken[when][0, 0, 9, 9] = value
    found, clean = last(broken), last(steps)
    assert found.isfinite().all()
    if beta == 0.0:
        assert torch.equal(found, clean)
    away = ~touched((24, 24), 8, 4, [(9, 9)])
    torch.testing.assert_close(found[..., away], clean[..., away], rtol=1e-6, atol=1e-6)
    # The average of the broken tile is the one of the other steps.
    without = last([x for i, x in enumerate(steps) if i != when])
    alone = touched((24, 24), 8, 4, [(9, 9)])
    for other in [(2, 9), (9, 2), (17, 9), (9, 17), (2, 2), (17, 17), (2, 17), (17, 2), (21, 9), (9, 21)]:
        alone &= ~touched((24, 24), 8, 4, [other])
    torch.testing.assert_close(found[..., alone], without[..., alone], rtol=1e-5, atol=1e-5)


@settings(max_examples=40, deadline=None)
@given(
    size=st.tuples(st.integers(2, 40), st.integers(2, 40)),
    tile=st.integers(1, 16),
    place=st.tuples(st.floats(0, 0.999), st.floats(0, 0.999)),
    value=st.sampled_from(BROKEN),
)
def test_gradient_confidence_is_always_known(size, tile, place, value):
    x = noise(2, 3, *size)
    x[1, 0, int(place[0] * size[0]), int(place[1] * size[1])] = value
    found = gradient_confidence(x, tile, max(tile // 2, 1))
    assert found.isfinite().all() and found.amin() >= 0.0 and found.amax() <= 1.0
    torch.testing.assert_close(found[0], gradient_confidence(x[:1], tile, max(tile // 2, 1))[0])


def test_around_a_nan_a_gradient_counts_as_none():
    x = torch.zeros(1, 1, 8, 24)
    x[..., 12:] = 1.0  # an edge in columns 11 and 12
    expected = gradient_confidence(x, 8, 8)
    x[0, 0, 4, 2] = torch.nan
    assert torch.equal(gradient_confidence(x, 8, 8), expected)


@pytest.mark.parametrize("value", BROKEN)
@pytest.mark.parametrize("masked", [False, True])
class TestAttention:
    def test_a_broken_query_is_uncertain_and_reaches_no_other(self, value, masked):
        q, k = 2.0 * noise(2, 12, 16), noise(2, 12, 16, seed=1)
        mask = torch.ones(1, 1, 1, 12, dtype=torch.bool) if masked else None
        q[0, 5, 3] = value
        found = entropy_confidence(q, k, 2, mask=mask)
        others = [i for i in range(12) if i != 5]
        expected = entropy_confidence(q[:1, others], k[:1], 2, mask=mask)
        assert found[0, 5] == 0.0
        torch.testing.assert_close(found[0, others], expected[0], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(found[1:], entropy_confidence(q[1:], k[1:], 2, mask=mask), rtol=1e-5, atol=1e-5)

    def test_a_broken_key_is_as_if_it_were_not_there(self, value, masked):
        q, k = 2.0 * noise(1, 12, 16), noise(1, 12, 16, seed=1)
        mask = torch.ones(1, 1, 1, 12, dtype=torch.bool) if masked else None
        k[0, 5] = value
        others = [i for i in range(12) if i != 5]
        expected = entropy_confidence(q, k[:, others], 2, mask=None if mask is None else mask[..., others])
        torch.testing.assert_close(entropy_confidence(q, k, 2, mask=mask), expected, rtol=1e-5, atol=1e-5)

    def test_nothing_finite_is_nothing_certain(self, value, masked):
        q = torch.full((1, 6, 8), value)
        mask = torch.ones(1, 1, 6, 6, dtype=torch.bool) if masked else None
        assert torch.equal(entropy_confidence(q, q, 1, mask=mask), torch.zeros(1, 6))


def test_a_token_of_unknown_confidence_leaves_its_tiles_unclipped(path):
    x = 3.0 * noise(1, 3, 32, 32)
    tokens = torch.full((1, 4, 4), 0.5)
    tokens[0, 0, 0] = torch.nan
    confidence = tile_confidence(tokens, (32, 32), 8, 8)
    found = aqclip(x, 8, 8, confidence=confidence)
    assert torch.equal(found[..., :8, :8], x[..., :8, :8]) and found.isfinite().all()
    assert not torch.equal(found, x)
