"""AQClip in ComfyUI's sampling: what it computes, how its average advances, what it refuses."""

import pytest
import torch

OPTIONS = {"corridor": "strong", "strength": 1.0, "tile": 6, "stride": 4}
RUN = {"start_percent": 0.0, "end_percent": 1.0, "ema_beta": 0.8, "confidence": "gradient"}


@pytest.fixture
def clip(comfy):
    from gimbal.nodes.aqclip import GimbalAQClip

    return lambda model, **changes: GimbalAQClip.execute(model, **{**OPTIONS, **RUN, **changes}).args[0]


@pytest.fixture
def on_latent(comfy):
    from gimbal.nodes.aqclip import GimbalAQClipLatent

    return lambda latent, **changes: GimbalAQClipLatent.execute(latent, **{**OPTIONS, **changes}).args[0]


def spy_on(model):
    """The predictions before our node: ComfyUI's own post-CFG functions run inside its wrapper."""
    seen = []

    def watch(args):
        seen.append(args["denoised"].clone())
        return args["denoised"]

    model.set_model_sampler_post_cfg_function(watch)
    return seen


@pytest.mark.parametrize("family", ["sd3", "sd15", "wan"])
def test_it_clips_each_step_with_the_average_of_the_run(tiny, denoised_seen, clip, family):
    from gimbal.core.aqclip import AQClipState, aqclip

    model = tiny.model(family)
    before = spy_on(model)
    after = denoised_seen(clip(model), family, steps=4)
    state, alone = AQClipState(), None
    for step, (x, y) in enumerate(zip(before, after, strict=True)):
        expected = aqclip(x, 6, 4, ema_beta=0.8, state=state, step=step, k_min=1.75, k_max=3.0)
        assert torch.equal(y, expected)
        alone = aqclip(x, 6, 4, k_min=1.75, k_max=3.0)
    assert not torch.equal(after[-1], alone), "the average made no difference: nothing was tested"


def test_a_second_call_within_a_step_does_not_advance_the_average(tiny, clip, monkeypatch):
    """Heun calls the model at a step's end, and again there as the next step's start."""
    from gimbal.core import aqclip

    steps = []
    average = aqclip.AQClipState.average

    def watch(self, corridor, beta, layout, step=None):
        steps.append(step)
        return average(self, corridor, beta, layout, step)

    monkeypatch.setattr(aqclip.AQClipState, "average", watch)
    tiny.sample(clip(tiny.model("sd3")), "sd3", sampler="heun", steps=4)
    assert steps == [0, 1, 1, 2, 2, 3, 3]


def test_the_papers_setting_is_the_papers(tiny, denoised_seen, clip):
    from gimbal.core.aqclip import aqclip

    model = tiny.model("sd3")
    before = spy_on(model)
    after = denoised_seen(clip(model, corridor="paper"))
    assert torch.equal(after[0], aqclip(before[0], 6, 4, corridor="paper", form="tanh"))


def test_a_stride_above_the_tile_is_half_a_tile(tiny, clip, on_latent):
    """Whoever lowers the tile alone leaves no gap between tiles, and gets no error."""
    model = tiny.model("sd3")
    half, wide = (tiny.sample(clip(model, stride=stride), "sd3") for stride in (3, 8))
    assert torch.equal(half, wide) and not torch.equal(half, tiny.sample(clip(model, stride=6), "sd3"))
    samples = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    half, wide = (on_latent({"samples": samples}, stride=stride)["samples"] for stride in (3, 8))
    assert torch.equal(half, wide) and not torch.equal(half, samples)


def test_latent_node(on_latent):
    from gimbal.core.aqclip import aqclip

    samples = torch.randn(2, 16, 13, 9, generator=torch.Generator().manual_seed(0))
    result = on_latent({"samples": samples, "batch_index": [0, 1]})
    assert torch.equal(result["samples"], aqclip(samples, 6, 4, k_min=1.75, k_max=3.0))
    assert result["batch_index"] == [0, 1]
    latent = {"samples": samples}
    assert on_latent(latent, strength=0.0) is latent


def test_default_leaves_a_clean_latent_nearly_alone(on_latent):
    samples = torch.randn(1, 16, 32, 32, generator=torch.Generator().manual_seed(0))
    result = on_latent({"samples": samples}, corridor="gentle", tile=32, stride=16)["samples"]
    assert (result - samples).square().mean() / samples.var() < 1e-3
    assert not torch.equal(result, samples)
