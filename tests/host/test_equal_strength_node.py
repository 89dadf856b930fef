"""Compare at Equal Strength on real sampling: the plain cfg it finds, the latents it gives, and what it refuses."""

import pytest
import torch

from gimbal.core.equal_strength import deviation

STEPS = 4


@pytest.fixture
def compare(comfy, tiny):
    from gimbal.nodes.equal_strength import GimbalEqualStrength

    def compare(model, plain, family="sd3", **changes):
        positive, negative = tiny.conditioning(family)
        options = {
            "positive": positive,
            "negative": negative,
            "latent_image": {"samples": tiny.latent(family, 2)},
            "seed": 5,
            "steps": STEPS,
            "cfg": 6.0,
            "sampler_name": "euler",
            "scheduler": "simple",
            "denoise": 1.0,
            "tolerance": 0.5,
            "max_runs": 5,
        }
        return GimbalEqualStrength.execute(model, plain, **options | changes).args

    return compare


@pytest.fixture
def scaled(comfy):
    """A patch that multiplies the guidance: plain guidance of another scale, so that the answer is known."""

    def scaled(model, by):
        def steer(args):
            cond, uncond = args["conds_out"]
            return [uncond + by * (cond - uncond), uncond]

        patched = model.clone()
        patched.set_model_sampler_pre_cfg_function(steer)
        return patched

    return scaled


@pytest.mark.parametrize("family", ["sd3", "sd15", "wan"])
@pytest.mark.parametrize("by", [0.4, 1.5])
def test_it_finds_the_scale_that_a_patch_only_multiplied(compare, scaled, tiny, family, by):
    plain = tiny.model(family)
    patched, found, cfg, text = compare(scaled(plain, by), plain, family, tolerance=0.1, max_runs=12)
    strengths = [deviation(latent["samples"]) for latent in (patched, found)]
    assert strengths[1] == pytest.approx(strengths[0], rel=1e-3)
    assert cfg == pytest.approx(6 * by, rel=0.05)
    assert text.startswith(f"Plain cfg {cfg:.3g} has the same strength as this model at cfg 6 ")


def test_its_latents_are_those_of_the_ksampler(compare, scaled, tiny):
    plain = tiny.model("sd3")
    patched, found, cfg, _ = compare(scaled(plain, 0.6), plain)
    latent = tiny.latent("sd3", 2)
    for made, model, scale in ((patched, scaled(plain, 0.6), 6.0), (found, plain, cfg)):
        expected = tiny.sample(model, "sd3", latent=latent, steps=STEPS, cfg=scale, seed=5)
        assert torch.equal(made["samples"], expected)


def test_a_model_without_patches_takes_one_run(compare, tiny):
    plain = tiny.model("sd3")
    patched, found, cfg, text = compare(plain, plain)
    assert cfg == 6.0 and "1 plain run)" in text
    assert torch.equal(patched["samples"], found["samples"])


def test_the_mask_and_the_batch_index_of_the_latent_are_kept(compare, scaled, tiny):
    plain = tiny.model("sd3")
    samples = torch.randn(2, 16, 16, 16, generator=torch.Generator().manual_seed(0))
    mask = torch.zeros(1, 1, 16, 16)
    mask[..., 8:] = 1.0
    latent = {"samples": samples, "noise_mask": mask, "batch_index": [4, 9]}
    patched, found, _, _ = compare(scaled(plain, 0.6), plain, latent_image=latent)
    for made in (patched, found):
        assert made["batch_index"] == [4, 9] and made["noise_mask"] is mask
        torch.testing.assert_close(made["samples"][..., :8], samples[..., :8])
        assert not torch.equal(made["samples"][..., 8:], samples[..., 8:])


def test_a_strength_out_of_reach_is_said(compare, tiny):
    plain = tiny.model("sd3")

    def loud(args):
        return 50.0 * args["denoised"]

    patched = plain.clone()
    patched.set_model_sampler_post_cfg_function(loud)
    _, _, cfg, text = compare(patched, plain, max_runs=2)
    assert "No plain cfg of the same strength was found in 2 plain runs" in text
    assert f"plain cfg {cfg:.3g}, is weaker" in text


def test_a_comparison_that_is_cancelled_says_so_on_the_node(tiny):
    """A text about a run that goes on would stay there."""
    from comfy.model_management import InterruptProcessingException

    from gimbal.host.comparing import compare
    from gimbal.host.messages import NOWHERE, Messages

    shown = []

    class Heard(Messages):
        def add(self, words):
            shown.append(words)

    def cancelled(model, cfg):
        raise InterruptProcessingException()

    plain = tiny.model("sd3")
    with pytest.raises(InterruptProcessingException):
        compare(Heard("Compare", NOWHERE), plain, plain, cancelled, 6.0, 2, 0.01)
    assert shown == ["stopped before the comparison was complete"]


def test_a_latent_of_nan_is_refused(compare, tiny):
    plain = tiny.model("sd3")
    broken = plain.clone()
    broken.set_model_sampler_post_cfg_function(lambda args: args["denoised"] * float("nan"))
    with pytest.raises(ValueError, match="model made has a deviation of nan"):
        compare(broken, plain)
