"""What the preview nodes show: the run that made their latent, and words where there is none."""

from itertools import pairwise

import numpy as np
import pytest
import torch

SAMG = {
    "preset": "w_min and w_max",
    "w_min": 2.0,
    "w_max": 5.0,
    "normalize": "minmax",
    "curve": "linear",
    "scope": "clip",
    "strength": 1.0,
    "start_percent": 0.0,
    "end_percent": 1.0,
}
WATCH = {"confidence": "gradient", "tile": 6, "stride": 4, "start_percent": 0.0, "end_percent": 1.0}
YELLOW, VIOLET = (253, 231, 37), (68, 1, 84)  # the two ends of the colour scale


@pytest.fixture
def samg(comfy):
    from gimbal.nodes.samg import GimbalSAMG

    return lambda model, **changes: GimbalSAMG.execute(model, **{**SAMG, **changes}).args[0]


@pytest.fixture
def watch(comfy):
    from gimbal.nodes.confidence import GimbalConfidence

    return lambda model, **changes: GimbalConfidence.execute(model, **{**WATCH, **changes}).args[0]


@pytest.fixture
def guidance(comfy):
    from gimbal.nodes.samg import GimbalGuidancePreview

    def guidance(model, samples, columns=8, sample=0):
        return GimbalGuidancePreview.execute({"samples": samples}, model, columns, sample).args[0]

    return guidance


@pytest.fixture
def confidence(comfy):
    from gimbal.nodes.confidence import GimbalConfidencePreview

    def confidence(samples, model=None, columns=8, sample=0):
        return GimbalConfidencePreview.execute({"samples": samples}, columns, sample, model).args

    return confidence


def calls(model, samples):
    from gimbal.host.sampling.hooks import stages_of

    seen, made_these = stages_of(model)[-1].observer.run_that_made(samples)
    assert made_these
    return seen.calls


def pixels(image):
    return (image[0] * 255).round().byte().numpy()


def share_of(image, colour):
    return (np.abs(pixels(image).astype(int) - colour).max(-1) <= 2).mean()


def test_the_maps_are_the_runs(tiny, samg):
    """The scale from the least to the largest, energy against it, one look a step."""
    from gimbal.core.samg import guidance_energy

    model = samg(tiny.model("sd3"))
    predictions = []
    watched = model.clone()
    # Ahead of SAMG's own function, so that it sees what SAMG sees.
    watched.model_options["sampler_pre_cfg_function"] = [
        lambda args: predictions.append(args["conds_out"]) or args["conds_out"],
        *watched.model_options["sampler_pre_cfg_function"],
    ]
    samples = tiny.sample(watched, "sd3", steps=5)
    seen = calls(watched, samples)
    assert [call.step for call in seen] == list(range(5))
    assert sorted((call.sigma for call in seen), reverse=True) == [call.sigma for call in seen]
    for call, (cond, uncond) in zip(seen, predictions, strict=True):
        torch.testing.assert_close(call.maps["energy"], guidance_energy(cond, uncond)[:, 0])
        assert call.maps["scale"].min() == pytest.approx(2.0) and call.maps["scale"].max() == pytest.approx(5.0)
        order = call.maps["energy"].flatten().argsort()
        assert (call.maps["scale"].flatten()[order].diff() <= 1e-6).all()


def test_the_picture_has_both_ends_of_the_scale_and_grows_with_its_columns(tiny, samg, guidance, artefacts):
    from PIL import Image

    model = samg(tiny.model("sd3"))
    samples = tiny.sample(model, "sd3", steps=6)
    image = guidance(model, samples, columns=4)
    Image.fromarray(pixels(image)).save(artefacts / "guidance_preview.png")
    assert image.shape[0] == 1 and image.shape[-1] == 3 and 0 <= image.min() < image.max() <= 1
    assert share_of(image, YELLOW) > 1e-3 and share_of(image, VIOLET) > 1e-3
    widths = [guidance(model, samples, columns=n).shape[2] for n in (3, 4, 6, 20)]
    assert widths[0] < widths[1] < widths[2] == widths[3]


def test_each_latent_gets_the_run_that_made_it(tiny, samg, guidance, caplog):
    model = samg(tiny.model("sd3"))
    first, second = (tiny.sample(model, "sd3", seed=seed) for seed in (1, 2))
    branch = model.clone()  # as a LoRA behind SAMG would make
    third = tiny.sample(branch, "sd3", seed=3)
    images = [guidance(model, samples) for samples in (first, second, third)]
    assert not torch.equal(images[0], images[1]) and not torch.equal(images[1], images[2])
    assert torch.equal(guidance(model, first), images[0])
    assert caplog.messages == [] or not any("Preview" in line for line in caplog.messages)
    other = guidance(model, first + 1)
    assert "The latest run that was seen. It did not make the latent" in caplog.text
    assert other.shape[1] > images[2].shape[1], "the note takes a line"


def test_a_model_that_has_not_run_is_said(tiny, samg, guidance, caplog):
    image = guidance(samg(tiny.model("sd3")), tiny.latent("sd3"))
    assert image.shape[-1] == 3 and image.std() > 0
    assert "Guidance Preview (SAMG): Nothing seen yet" in caplog.text and "change its seed" in caplog.text


def test_a_model_without_samg_is_refused(tiny, guidance):
    with pytest.raises(
        ValueError, match=r"Guidance Preview \(SAMG\): this model carries no SAMG; connect the model that"
    ):
        guidance(tiny.model("sd3"), tiny.latent("sd3"))


def test_a_cancelled_run_leaves_nothing(tiny, samg, guidance, caplog):
    def stop(step, *_):
        raise RuntimeError("cancelled")

    model = samg(tiny.model("sd3"))
    with pytest.raises(RuntimeError, match="cancelled"):
        tiny.sample(model, "sd3", callback=stop)
    guidance(model, tiny.latent("sd3"))
    assert "Nothing seen yet" in caplog.text


def test_other_samples_of_the_batch(tiny, samg, guidance):
    model = samg(tiny.model("sd3"))
    samples = tiny.sample(model, "sd3", latent=tiny.latent("sd3", batch=2))
    assert not torch.equal(guidance(model, samples, sample=0), guidance(model, samples, sample=1))
    with pytest.raises(ValueError, match="sample is 2, but 2 were kept of the batch; choose 0 to 1"):
        guidance(model, samples, sample=2)


def test_long_runs_are_thinned_evenly(tiny, watch):
    model = watch(tiny.model("sd3"))
    samples = tiny.sample(model, "sd3", steps=150)
    steps = [call.step for call in calls(model, samples)]
    assert len(steps) <= 64 and steps[0] == 0 and steps[-1] >= 144
    assert len({b - a for a, b in pairwise(steps)}) == 1


def test_video_shows_its_middle_frame_and_large_maps_shrink(tiny, samg, guidance):
    model = samg(tiny.model("wan"))
    samples = tiny.sample(model, "wan", steps=1)
    (call,) = calls(model, samples)
    assert call.maps["scale"].shape == (1, 16, 16)
    assert guidance(model, samples).ndim == 4
    from gimbal.host.sampling.observe import MapRecorder

    wide = MapRecorder([1.0, 0.0])
    wide.add(torch.ones(1), 1, energy=torch.ones(1, 90, 160))
    (call,) = wide.finish(torch.zeros(1)).calls
    assert call.maps["energy"].shape == (1, 54, 96)


@pytest.mark.parametrize("family", ["sd3", "wan"])
def test_watching_changes_nothing_and_shows_the_tiles(tiny, denoised_seen, watch, confidence, family):
    from gimbal.core.confidence import gradient_confidence

    plain = tiny.model(family)
    model = watch(plain)
    samples = tiny.sample(model, family)
    assert torch.equal(samples, tiny.sample(plain, family))
    last = denoised_seen(plain, family)[-1]
    expected = gradient_confidence(last, 6, 4)
    expected = expected[:, expected.shape[1] // 2] if expected.ndim == 4 else expected
    assert torch.equal(calls(model, samples)[-1].maps["certainty"], expected)
    image, mask = confidence(samples, model)
    assert image.shape[-1] == 3 and mask.shape == (1, 16, 16)
    assert mask.max() == pytest.approx(1.0, abs=0.05) and mask[0, 0, 0] == pytest.approx(float(expected[0, 0, 0]))


def test_without_a_model_the_latents_own_gradient_is_shown(confidence):
    samples = torch.zeros(1, 16, 64, 96)
    samples[..., 40:, 70:] = torch.randn(1, 16, 24, 26, generator=torch.Generator().manual_seed(0))
    image, mask = confidence(samples)
    assert mask.shape == (1, 64, 96) and mask[0, -1, -1] == pytest.approx(1.0) and mask[0, 0, 0] == 0.0
    assert image.shape[-1] == 3
    with pytest.raises(ValueError, match="the latent is no image or video"):
        confidence(torch.zeros(1, 16, 64))


def test_aqclip_can_be_watched_too(tiny, confidence, caplog):
    from gimbal.nodes.aqclip import GimbalAQClip

    options = {"corridor": "gentle", "strength": 1.0, "tile": 6, "stride": 4, "ema_beta": 0.8}
    model = GimbalAQClip.execute(
        tiny.model("sd3"), confidence="attention", start_percent=0.0, end_percent=1.0, **options
    ).args[0]
    samples = tiny.sample(model, "sd3")
    one_row = confidence(samples, model)[0].shape[1]
    assert "tokens" in calls(model, samples)[0].maps
    by_gradient = GimbalAQClip.execute(
        tiny.model("sd3"), confidence="gradient", start_percent=0.0, end_percent=1.0, **options
    ).args[0]
    assert one_row > confidence(tiny.sample(by_gradient, "sd3"), by_gradient)[0].shape[1]
