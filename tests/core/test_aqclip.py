"""AQClip against a slow loop over tiles, and what it must leave alone."""

import math
from statistics import NormalDist

import pytest
import torch

from gimbal.core.aqclip import AQClipState, aqclip
from gimbal.core.confidence import gradient_confidence

LAYOUTS = {
    "13x9": (13, 9, 4, 2),
    "one tile": (13, 9, 32, 16),
    "104x152": (104, 152, 32, 16),
    "90x160": (90, 160, 32, 16),
    "odd stride": (40, 37, 8, 3),
    "no overlap": (24, 20, 8, 8),
    "larger one way": (20, 80, 32, 12),
}


def starts_of(length, tile, stride):
    """First positions of the tiles, counted up one by one."""
    starts = [0]
    while starts[-1] + tile < length:
        starts.append(min(starts[-1] + stride, length - tile))
    return starts


def corridor_of(values, certainty, corridor):
    mu, sd = values.mean(), values.std(correction=0)
    if corridor == "widening":
        return mu - (2.5 + 2.0 * certainty) * sd, mu + (2.5 + 2.0 * certainty) * sd
    q_low, q_high = 0.5 * certainty**2, 1.0 - 0.5 * (1.0 - certainty) ** 2
    ndtri = NormalDist().inv_cdf
    return mu + ndtri(max(q_low, 1e-6)) * sd, mu + ndtri(min(q_high, 1.0 - 1e-6)) * sd


def clip_value_by_value(values, low, high, form, alpha, knee):
    m, d = (low + high) / 2.0, (high - low) / 2.0
    if form == "tanh":
        return m + d * torch.tanh(alpha * (values - m) / (d + 1e-8))
    u = (values - m) / d
    t = (u.abs() - knee) / (1.0 - knee)
    return torch.where(u.abs() <= knee, values, m + d * u.sign() * (knee + (1.0 - knee) * t / (1.0 + t)))


def oracle(steps, layout, corridor, form, alpha=2.0, knee=0.8, beta=0.8):
    """One picture (C, H, W) at each of several steps, tile by tile in float64. Returns the last step's result."""
    height, width, tile, stride = layout
    tall, wide = min(tile, height), min(tile, width)
    total, count = torch.zeros_like(steps[0], dtype=torch.float64), torch.zeros(height, width, dtype=torch.float64)
    certainties = [gradient_confidence(x.unsqueeze(0), tile, stride)[0].double() for x in steps]
    for i, top in enumerate(starts_of(height, tall, stride)):
        for j, left in enumerate(starts_of(width, wide, stride)):
            where = (slice(None), slice(top, top + tall), slice(left, left + wide))
            low = high = None
            for x, certainty in zip(steps, certainties, strict=True):
                values = x[where].double()
                now = corridor_of(values, certainty[i, j].item(), corridor)
                low = now[0] if low is None else beta * low + (1.0 - beta) * now[0]
                high = now[1] if high is None else beta * high + (1.0 - beta) * now[1]
            total[where] += clip_value_by_value(values, low, high, form, alpha, knee)
            count[where[1:]] += 1.0
    return (total / count).float()


def latent(*shape, seed=0):
    """Noise with structure: a local mean and a local spread, and a few outliers."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator)
    rows, columns = torch.meshgrid(*(torch.linspace(0, 3, n) for n in shape[-2:]), indexing="ij")
    x = x * (0.3 + (rows + columns).sin() ** 2) + 2.0 * (rows * columns).cos()
    return torch.where(torch.rand(shape, generator=generator) < 0.01, 6.0 * x, x)


@pytest.mark.parametrize("form", ["tanh", "smooth"])
@pytest.mark.parametrize("corridor", ["paper", "widening"])
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
class TestAgainstTheLoop:
    def test_batch_of_images(self, layout, corridor, form):
        x = latent(2, 3, *layout[:2])
        result = aqclip(x, layout[2], layout[3], corridor=corridor, form=form)
        expected = torch.stack([oracle([sample], layout, corridor, form) for sample in x])
        torch.testing.assert_close(result, expected, atol=1e-5, rtol=1e-5)
        assert (result - x).abs().amax() > 0.01

    def test_three_steps_of_video(self, layout, corridor, form):
        steps = [latent(2, 2, 2, *layout[:2], seed=seed) for seed in range(3)]
        state = AQClipState()
        for x in steps:
            result = aqclip(x, layout[2], layout[3], corridor=corridor, form=form, state=state)
        for b in range(2):
            for f in range(2):
                expected = oracle([x[b, :, f] for x in steps], layout, corridor, form)
                torch.testing.assert_close(result[b, :, f], expected, atol=1e-5, rtol=1e-5)


def test_options_reach_the_clip():
    layout = (40, 37, 8, 3)
    x = latent(1, 3, 40, 37)
    soft = aqclip(x, 8, 3, alpha=0.7, form="tanh")
    torch.testing.assert_close(soft[0], oracle([x[0]], layout, "widening", "tanh", alpha=0.7), atol=1e-5, rtol=1e-5)
    early = aqclip(x, 8, 3, knee=0.25)
    torch.testing.assert_close(early[0], oracle([x[0]], layout, "widening", "smooth", knee=0.25), atol=1e-5, rtol=1e-5)


def test_one_tile_by_hand():
    # 8 zeros, 4, -4: mean 0, sd sqrt(32 / 10). At H = 0.5 k is 1 + 0.5 * (2 - 1) = 1.5.
    x = torch.tensor([0.0, 0, 0, 0, 4, -4, 0, 0, 0, 0]).view(1, 1, 2, 5)
    d = 1.5 * math.sqrt(3.2)  # 2.683: the knee is at 0.5 d = 1.342, beyond it remains r = 1.342
    excess = 4.0 - 0.5 * d
    edge = 0.5 * d + excess / (1.0 + excess / (0.5 * d))
    result = aqclip(x, confidence=torch.full((1, 1, 1), 0.5), k_min=1.0, k_max=2.0, knee=0.5)
    assert result.flatten().tolist() == pytest.approx([0, 0, 0, 0, edge, -edge, 0, 0, 0, 0])


def test_paper_corridor_slides_with_confidence():
    # Eq. 2: at H = 1 it is [mu, mu + 4.75 sd], at H = 0 [mu - 4.75 sd, mu], so that H alone moves every value.
    x = latent(1, 4, 24, 24)
    grid = torch.ones(1, 1, 1)
    mu, sd = x.mean().item(), x.std(correction=0).item()
    sure = aqclip(x, confidence=grid, corridor="paper", form="tanh")
    unsure = aqclip(x, confidence=0 * grid, corridor="paper", form="tanh")
    assert mu - 1e-4 <= sure.min() and sure.max() <= mu + 4.76 * sd
    assert mu - 4.76 * sd <= unsure.min() and unsure.max() <= mu + 1e-4
    assert sure.max() > mu + sd and unsure.min() < mu - sd


def test_smooth_leaves_the_core_bit_for_bit_and_approaches_the_bound():
    x = latent(1, 4, 96, 96)
    result = aqclip(x, 32, 16)
    touched = result != x
    assert 0.0 < touched.float().mean() < 0.1
    assert (result[touched].sign() * (x - result)[touched] > 0).float().mean() > 0.5  # outliers come inwards
    far = x.clone()
    far[0, 0, 48, 48] = 1e6
    bounded = aqclip(far, 96, 96, confidence=torch.ones(1, 1, 1))
    mu, sd = far.double().mean(), far.double().std(correction=0)
    assert 0.99 * (mu + 4.5 * sd) < bounded[0, 0, 48, 48] < mu + 4.5 * sd


def test_knee_of_one_clamps():
    x = latent(1, 2, 16, 16)
    result = aqclip(x, confidence=torch.zeros(1, 1, 1), knee=1.0, k_min=1.0)
    mu, sd = x.mean(), x.std(correction=0)
    torch.testing.assert_close(result, x.clamp(mu - sd, mu + sd), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("form", ["tanh", "smooth"])
@pytest.mark.parametrize("corridor", ["paper", "widening"])
@pytest.mark.parametrize("value", [0.0, 0.1, -1234.567])
def test_a_constant_latent_is_unchanged(form, corridor, value):
    x = torch.full((2, 5, 45, 37), value)
    state = AQClipState()
    assert torch.equal(aqclip(x, 8, 3, corridor=corridor, form=form, state=state), x)
    assert torch.equal(aqclip(x, 8, 3, corridor=corridor, form=form, state=state), x)


@pytest.mark.parametrize("form", ["tanh", "smooth"])
def test_constant_tiles_beside_others_are_unchanged(form):
    x = latent(1, 3, 64, 64)
    x[..., :32] = 0.1
    elsewhere = AQClipState()  # whose average corridor does not hold 0.1
    aqclip(latent(1, 3, 64, 64, seed=1) + 50.0, 16, 8, form=form, state=elsewhere)
    result = aqclip(x, 16, 8, form=form, state=elsewhere)
    assert torch.equal(result[..., :24], x[..., :24])  # from column 24 on, tiles reach beyond column 32
    assert not torch.equal(result[..., 32:], x[..., 32:])


@pytest.mark.parametrize("form", ["tanh", "smooth"])
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_every_position_is_written(form, layout):
    x = latent(1, 2, *layout[:2]) + 100.0
    result = aqclip(x, layout[2], layout[3], form=form)
    assert (result - x).abs().amax() < 60.0  # a position left out would be 0 or undefined


@pytest.mark.parametrize("form", ["tanh", "smooth"])
def test_samples_do_not_depend_on_each_other(form):
    a, b = latent(1, 4, 90, 56), 10.0 * latent(1, 4, 90, 56, seed=1)
    both = aqclip(torch.cat((a, b)), form=form)
    torch.testing.assert_close(both, torch.cat((aqclip(a, form=form), aqclip(b, form=form))), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("form", ["tanh", "smooth"])
def test_frames_do_not_mix(form):
    order = [2, 0, 1]
    states = AQClipState(), AQClipState()
    for seed in range(2):
        x = latent(1, 3, 3, 40, 24, seed=seed) * torch.tensor([1.0, 5.0, 25.0]).view(3, 1, 1)
        plain = aqclip(x, 16, 8, form=form, state=states[0])
        permuted = aqclip(x[:, :, order], 16, 8, form=form, state=states[1])
        torch.testing.assert_close(permuted, plain[:, :, order], atol=1e-6, rtol=1e-6)
    images = x.transpose(1, 2).flatten(0, 1)  # each frame as an image of its own
    torch.testing.assert_close(
        aqclip(x, 16, 8, form=form).transpose(1, 2).flatten(0, 1),
        aqclip(images, 16, 8, form=form),
        atol=1e-6,
        rtol=1e-6,
    )


@pytest.mark.parametrize("form", ["tanh", "smooth"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_narrow_types_are_computed_in_float32(form, dtype):
    x = latent(2, 4, 40, 24).to(dtype)
    result = aqclip(x, 16, 8, form=form)
    assert result.dtype == dtype
    assert torch.equal(result, aqclip(x.float(), 16, 8, form=form).to(dtype))


def test_float64_keeps_the_digits_of_what_is_not_clipped():
    x = latent(1, 4, 40, 24).double() / 3.0
    result = aqclip(x, 16, 8)
    torch.testing.assert_close(result.float(), aqclip(x.float(), 16, 8))
    untouched = result == x
    assert untouched.float().mean() > 0.9 and not untouched.all()
    assert (x.float().double() != x)[untouched].any()


def test_the_argument_is_left_alone_and_its_layout_does_not_matter():
    x = latent(2, 4, 40, 24)
    before = x.clone()
    result = aqclip(x, 16, 8)
    assert torch.equal(x, before)
    last = x.contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(aqclip(last, 16, 8), result, atol=1e-6, rtol=1e-6)


def test_large_latents_are_cut_into_blocks_without_a_seam():
    # Periodic in 16 rows and columns, so all tiles are equal and the result has to be periodic as well.
    pattern = latent(1, 4, 16, 16)
    result = aqclip(pattern.repeat(1, 1, 24, 24), form="tanh", confidence=torch.full((1, 23, 23), 0.5))
    torch.testing.assert_close(result, result[..., :16, :16].repeat(1, 1, 24, 24), atol=1e-5, rtol=1e-5)


OPTIONS = {"tile": 8, "stride": 4}


class TestState:
    def runs(self, inputs, steps=None, **options):
        state = AQClipState()
        steps = steps or [None] * len(inputs)
        return [aqclip(x, **OPTIONS, state=state, step=s, **options) for x, s in zip(inputs, steps, strict=True)]

    def test_the_first_step_is_the_plain_clip_and_the_second_is_not(self):
        x, y = latent(1, 3, 24, 24), latent(1, 3, 24, 24, seed=1)
        first, second = self.runs([x, y])
        assert torch.equal(first, aqclip(x, **OPTIONS))
        assert not torch.equal(second, aqclip(y, **OPTIONS))

    def test_beta_of_zero_forgets(self):
        x, y = latent(1, 3, 24, 24), latent(1, 3, 24, 24, seed=1)
        assert torch.equal(self.runs([x, y], ema_beta=0.0)[1], aqclip(y, **OPTIONS))

    def test_a_second_call_in_a_step_does_not_advance(self):
        # A second-order sampler calls at steps 0 0 1 1 2; only the last call of each step is remembered.
        x = [latent(1, 3, 24, 24, seed=seed) for seed in range(5)]
        twice = self.runs(x, steps=[0, 0, 1, 1, 2])
        once = self.runs([x[1], x[3], x[4]], steps=[0, 1, 2])
        assert torch.equal(twice[4], once[2])
        assert torch.equal(twice[3], once[1])
        assert torch.equal(twice[1], aqclip(x[1], **OPTIONS))
        assert not torch.equal(twice[4], self.runs(x)[4])

    def test_the_same_input_twice_in_a_step_gives_the_same(self):
        x, y = latent(1, 3, 24, 24), latent(1, 3, 24, 24, seed=1)
        _, first, again = self.runs([x, y, y], steps=["a", "b", "b"])
        assert torch.equal(first, again)

    @pytest.mark.parametrize(
        ("shape", "options"), [((1, 3, 32, 24), {}), ((2, 3, 24, 24), {}), ((1, 3, 24, 24), {"tile": 9, "stride": 4})]
    )
    @pytest.mark.parametrize("step", [None, 0])
    def test_another_layout_starts_anew(self, shape, options, step):
        state = AQClipState()
        aqclip(latent(1, 3, 24, 24), **OPTIONS, state=state, step=step)
        options = OPTIONS | options
        y = latent(*shape, seed=1)
        assert torch.equal(aqclip(y, **options, state=state, step=step), aqclip(y, **options))

    def test_two_states_do_not_mix(self):
        x, y = latent(1, 3, 24, 24), 9.0 * latent(1, 3, 24, 24, seed=1)
        one, other = AQClipState(), AQClipState()
        for z in (x, y):
            aqclip(z, **OPTIONS, state=one)
            aqclip(z.flip(-1), **OPTIONS, state=other)
        assert torch.equal(aqclip(x, **OPTIONS, state=one), self.runs([x, y, x])[2])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"corridor": "wide"}, "corridor is 'wide'"),
        ({"form": "hard"}, "form is 'hard'"),
        ({"alpha": 0.0}, "alpha is 0.0"),
        ({"alpha": math.nan}, "alpha is nan"),
        ({"ema_beta": 1.0}, "ema_beta is 1.0"),
        ({"ema_beta": -0.1}, "ema_beta is -0.1"),
        ({"knee": 1.1}, "knee is 1.1"),
        ({"k_min": 3.0, "k_max": 2.0}, "k_min=3.0, k_max=2.0"),
        ({"confidence": torch.ones(1, 2, 2)}, r"confidence has shape \(1, 2, 2\).*\(1, 4, 4\)"),
        ({"confidence": torch.ones(1, 1, 4, 4)}, r"confidence has shape \(1, 1, 4, 4\)"),
        ({"stride": 9}, "stride is 9"),
    ],
)
def test_bad_arguments_are_refused(options, message):
    with pytest.raises(ValueError, match=f"(aqclip|tile_grid): .*{message}"):
        aqclip(torch.zeros(1, 3, 20, 20), **{"tile": 8, "stride": 4, **options})


def test_what_is_no_latent_is_refused():
    with pytest.raises(ValueError, match="as_frames: x is"):
        aqclip(torch.zeros(3, 20, 20))
