"""The kernels' form for accelerators: its numbers on the CPU, its operators and waits on the meta device."""

import pytest
import torch

from devkit.operators import operators
from gimbal.core import aqclip_device, device
from gimbal.core.aqclip import AQClipState, aqclip
from gimbal.core.confidence import gradient_confidence
from gimbal.core.match import MomentMatcher
from gimbal.core.micrograin import micrograin
from gimbal.core.normal import lower_ndtri
from gimbal.core.samg import guidance_energy, samg, samg_cond, scale_map, scale_of_energy
from gimbal.core.solvers import Stepper, make_plan
from gimbal.core.tiles import as_frames, tile_grid, tile_means, tile_statistics

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
IMAGE = (1, 4, 128, 128)


def meta(*shape, dtype=torch.float32):
    return torch.empty(shape, device="meta", dtype=dtype)


@pytest.fixture
def forced(monkeypatch):
    """Call it to have the kernels take the CPU for an accelerator."""
    return lambda: monkeypatch.setattr(device, "on_host", lambda x: False)


class TestOperators:
    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("shape", [IMAGE, (2, 16, 5, 60, 104)])
    @pytest.mark.parametrize("form", ["hard", "tanh", "smooth"])
    def test_micrograin(self, form, shape, dtype):
        assert operators(lambda: micrograin(meta(*shape, dtype=dtype), form=form)) < 40

    @pytest.mark.parametrize("dtype", DTYPES)
    def test_aqclip_at_its_defaults(self, dtype):
        state = AQClipState()
        first = operators(lambda: aqclip(meta(*IMAGE, dtype=dtype), state=state))
        later = operators(lambda: aqclip(meta(*IMAGE, dtype=dtype), state=state))
        assert operators(lambda: aqclip(meta(*IMAGE, dtype=dtype))) < 80
        assert first < 80 and later < 80

    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("form", ["tanh", "smooth"])
    @pytest.mark.parametrize("corridor", ["paper", "widening"])
    @pytest.mark.parametrize(
        ("shape", "tile", "stride"),
        [
            (IMAGE, 8, 1),
            (IMAGE, 32, 16),
            ((1, 4, 90, 160), 32, 16),
            ((1, 16, 5, 60, 104), 32, 16),
            ((2, 4, 13, 9), 4, 3),
            ((1, 4, 64, 64), 64, 64),
        ],
    )
    def test_aqclip_however_it_is_set(self, shape, tile, stride, corridor, form, dtype):
        x = meta(*shape, dtype=dtype)
        bound = 140 if corridor == "paper" else 90  # the normal quantile takes about forty
        assert operators(lambda: aqclip(x, tile, stride, corridor=corridor, form=form, state=AQClipState())) < bound

    def test_aqclip_of_large_latents_grows_with_their_size_alone(self):
        # A piece of work is at least WORK elements or a latent: 6 layers here, 8 operators each.
        large = operators(lambda: aqclip(meta(1, 16, 21, 90, 160)))
        assert large < 90 + 6 * 8
        assert (
            operators(lambda: aqclip(meta(1, 4, 640, 640), 8, 1)) < 90 + 64 * 4 * 640 * 640 / aqclip_device.WORK * 12
        )

    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("normalize", ["minmax", "quantile"])
    @pytest.mark.parametrize("curve", ["linear", "bound"])
    @pytest.mark.parametrize("shape", [IMAGE, (1, 16, 5, 60, 104)])
    def test_samg(self, shape, curve, normalize, dtype):
        cond, uncond = meta(*shape, dtype=dtype), meta(*shape, dtype=dtype)
        assert operators(lambda: samg(cond, uncond, 5.0, 12.0, normalize, curve)) <= 18

        assert operators(lambda: samg_cond(cond, uncond, 7.5, (5.0, 12.0), normalize, curve)) <= 20

    @pytest.mark.parametrize("channels", [1, 4])
    def test_drift_adds_two_operators_to_a_step(self, channels):
        x = meta(*IMAGE)
        sigmas = [10.0, 5.0, 2.0, 0.0]

        def step(variance):
            stepper = Stepper(make_plan("euler", sigmas, variance=variance), x)
            stepper.step(lambda x, sigma: x)
            return operators(lambda: stepper.step(lambda x, sigma: x))

        assert step(lambda sigma: torch.full((channels,), 0.01)) == step(None) + 2

    def test_moments_of_a_step_are_one_operator(self):
        scale, shift = torch.ones(4), torch.zeros(4)
        matching = MomentMatcher([None, (scale, shift), (scale, shift)])
        x = meta(*IMAGE)
        assert operators(lambda: matching(0, x)) == 4  # all maps are sent ahead, in the first step
        assert operators(lambda: matching(0, x)) == 0
        assert operators(lambda: matching(2, x)) == 1

    def test_a_wait_would_be_seen(self):
        x = meta(4, 4)
        for wait in (lambda: x.cpu(), lambda: x.sum().item(), lambda: x.nonzero(), lambda: x[x > 0]):
            with pytest.raises((AssertionError, RuntimeError, NotImplementedError)):
                operators(wait)
        with pytest.raises(AssertionError, match="copies from the CPU and waits"):
            operators(lambda: torch.ones(3).to("meta"))


def latent(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator)
    return torch.where(torch.rand(shape, generator=generator) < 0.01, 6.0 * x, x) + 3.0


LAYOUTS = [(40, 37, 8, 3), (13, 9, 32, 16), (24, 20, 8, 8), (90, 64, 32, 16), (20, 17, 8, 1), (7, 5, 3, 1)]


class TestNumbers:
    """Both forms of a kernel agree to float32 rounding."""

    @pytest.mark.parametrize("dtype", [*DTYPES, torch.float64])
    @pytest.mark.parametrize("form", ["tanh", "smooth"])
    @pytest.mark.parametrize("corridor", ["paper", "widening"])
    @pytest.mark.parametrize("layout", LAYOUTS)
    @pytest.mark.parametrize("frames", [None, 3])
    def test_aqclip(self, layout, corridor, form, dtype, frames, forced):
        height, width, tile, stride = layout
        size = (height, width) if frames is None else (frames, height, width)
        steps = [latent(2, 3, *size, seed=seed).to(dtype) for seed in range(3)]
        steps[1][0, 1, ..., 2, 3] = torch.nan
        options = {"tile": tile, "stride": stride, "corridor": corridor, "form": form, "ema_beta": 0.6}
        state = AQClipState()
        expected = [aqclip(x, state=state, **options) for x in steps]
        forced()
        state = AQClipState()
        rounding = {torch.float16: 2e-3, torch.bfloat16: 2e-2}.get(dtype, 1e-5)
        for x, there in zip(steps, expected, strict=True):
            found = aqclip(x, state=state, **options)
            assert found.dtype == dtype and found.is_contiguous()
            torch.testing.assert_close(found, there, rtol=rounding, atol=rounding, equal_nan=True)

    @pytest.mark.parametrize("form", ["tanh", "smooth"])
    def test_aqclip_in_pieces(self, form, forced, monkeypatch):
        x = latent(2, 3, 40, 37)
        expected = aqclip(x, 8, 3, form=form)
        forced()
        for work in (1, 3 * x.numel(), 2**22):  # one layer, three, all
            monkeypatch.setattr(aqclip_device, "WORK", work)
            torch.testing.assert_close(aqclip(x, 8, 3, form=form), expected, rtol=1e-5, atol=1e-5)

    @pytest.mark.parametrize("form", ["tanh", "smooth"])
    @pytest.mark.parametrize("value", [0.0, 0.1, -1234.567])
    def test_a_constant_latent_is_unchanged(self, form, value, forced):
        forced()
        x = torch.full((2, 5, 45, 37), value)
        assert torch.equal(aqclip(x, 8, 3, form=form, state=AQClipState()), x)

    def test_smooth_leaves_the_core_bit_for_bit(self, forced):
        x = latent(1, 4, 96, 96)
        host = aqclip(x) != x
        forced()
        here = aqclip(x) != x
        assert 0.0 < here.float().mean() < 0.1 and (here == host).float().mean() > 0.9999

    @pytest.mark.parametrize("layout", LAYOUTS)
    @pytest.mark.parametrize("offset", [0.0, 1000.0])
    def test_tiles_and_confidence(self, layout, offset, forced):
        height, width, tile, stride = layout
        x = latent(2, 3, 2, height, width) + offset
        grid = tile_grid(height, width, tile, stride)
        expected = (*tile_statistics(as_frames(x), grid), tile_means(x, grid), gradient_confidence(x, tile, stride))
        forced()
        found = (*tile_statistics(as_frames(x), grid), tile_means(x, grid), gradient_confidence(x, tile, stride))
        for there, here in zip(expected, found, strict=True):
            torch.testing.assert_close(here, there, rtol=1e-4 if offset else 1e-5, atol=1e-5)

    def test_constant_tiles_have_no_variance(self, forced):
        forced()
        x = torch.full((1, 5, 1, 40, 37), 0.1) + torch.arange(3).repeat_interleave(13)[:37]
        mean, variance = tile_statistics(as_frames(x[:, :, 0]), tile_grid(40, 37, 7, 3))
        constant = (variance == 0).float().mean()
        assert 0.2 < constant < 0.8
        assert set(mean[variance == 0].tolist()) == set(x.unique().tolist())


def test_the_normal_quantile():
    special = pytest.importorskip("scipy.special")
    p = torch.cat((torch.logspace(-10, -0.31, 4000), torch.linspace(1e-3, 0.5, 1000)))
    expected = torch.from_numpy(special.ndtri(p.double().numpy()))
    torch.testing.assert_close(lower_ndtri(p).double(), expected, rtol=2e-6, atol=2e-7)
    assert lower_ndtri(torch.tensor([0.5])).item() == 0.0
    torch.testing.assert_close(lower_ndtri(p), torch.special.ndtri(p), rtol=2e-6, atol=2e-7)


def test_scale_of_energy_is_the_scale_map_and_leaves_the_energy_alone():
    cond, uncond = latent(2, 4, 3, 24, 20), latent(2, 4, 3, 24, 20, seed=1)
    energy = guidance_energy(cond, uncond)
    before = energy.clone()
    for options in (("minmax", "linear", "clip"), ("quantile", "bound", "frame"), ("quantile", "linear", "clip")):
        found = scale_of_energy(energy, 2.0, 9.0, *options)
        torch.testing.assert_close(found, scale_map(cond, uncond, 2.0, 9.0, *options), rtol=1e-5, atol=1e-5)
    assert torch.equal(energy, before)
    with pytest.raises(ValueError, match=r"scale_of_energy: energy is \(2, 4, 3, 24, 20\)"):
        scale_of_energy(cond, 2.0, 9.0)
    with pytest.raises(ValueError, match="scale_of_energy: w_min=9"):
        scale_of_energy(energy, 9.0, 2.0)
