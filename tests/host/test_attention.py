"""Reading attention in ComfyUI's networks: the right tokens, of the right prompt, without changing anything."""

import math

import pytest
import torch
from rounding import assert_equal_but_for_rounding, of_run

# The block where text and image first meet tells them apart: there, text does not depend on the latent yet.
FAMILIES = [
    "sd15",
    "sd15_deep",
    "sd3",
    "flux",
    "chroma",
    "hunyuan_image",
    "hunyuan_video",
    "wan",
    "qwen",
    "lumina2",
    "z_image",
    "pixart",
]


@pytest.fixture
def watch(comfy):
    from gimbal.nodes.confidence import GimbalConfidence

    def watch(model, confidence="attention", **changes):
        options = {"tile": 6, "stride": 4, "start_percent": 0.0, "end_percent": 1.0, **changes}
        return GimbalConfidence.execute(model, confidence=confidence, **options).args[0]

    return watch


@pytest.fixture
def seen_by(comfy):
    """What the last stage of a model saw of the run that made these samples."""
    from gimbal.host.sampling.hooks import stages_of

    def seen_by(model, samples):
        seen, made_these = stages_of(model)[-1].observer.run_that_made(samples)
        assert made_these
        return seen.calls

    return seen_by


@pytest.fixture
def attentions(comfy, monkeypatch):
    """Every self-attention over the image that is found: where the image starts, its grid, q and k."""
    from gimbal.host.sampling import attention

    found = []
    image = attention._Call._image

    def spy(self, q, k, options):
        result = image(self, q, k, options)
        if result is not None:
            found.append((*result, q.clone(), k.clone()))
        return result

    monkeypatch.setattr(attention._Call, "_image", spy)
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_reading_changes_no_bit(tiny, watch, seen_by, family):
    model = tiny.model(family)
    plain = tiny.sample(model, family)
    watched = watch(model)
    samples = tiny.sample(watched, family)
    assert torch.equal(samples, plain)
    calls = seen_by(watched, samples)
    assert [call.step for call in calls] == [0, 1, 2]
    for call in calls:
        tokens = call.maps["tokens"]  # absent where attention could not be read
        assert tokens.isfinite().all() and 0.0 <= tokens.min() < tokens.max() <= 1.0


@pytest.mark.parametrize("references", [0, 2])
@pytest.mark.parametrize("family", FAMILIES)
def test_it_reads_the_images_tokens_and_no_others(tiny, watch, attentions, family, references):
    """Change the latent alone: before text and image have met, exactly the image's tokens change."""
    if references and family not in ("flux", "qwen"):
        pytest.skip("takes no reference latents")
    import comfy.sample

    positive, _ = tiny.conditioning(family)
    if references:
        extra = [
            torch.randn(1, 16, 8 + 2 * i, 12, generator=torch.Generator().manual_seed(i)) for i in range(references)
        ]
        extra = [r.unsqueeze(2) for r in extra] if family == "qwen" else extra
        positive[0][1]["reference_latents"] = extra
    latent = tiny.latent(family, grow=4)
    model = watch(tiny.model(family))
    rows = []
    for seed in (0, 1):
        attentions.clear()
        noise = comfy.sample.prepare_noise(latent, seed)
        comfy.sample.sample(
            model, noise, 1, 1.0, "euler", "simple", positive, positive, latent, disable_pbar=True, seed=0
        )
        rows.append(attentions[0])
    (start, grid, q, _), (_, _, other, _) = rows
    changed = (q != other).movedim(-2, 0).flatten(1).any(1)  # (tokens,)
    image = range(start, start + math.prod(grid))
    if family == "z_image":  # a refiner has spread the image to its own padding, the 16 tokens behind it
        assert grid == (10, 8)
        changed = changed[:-16]
    assert [i for i, differs in enumerate(changed.tolist()) if differs] == list(image)
    patch = 1 if family in ("sd15", "sd15_deep", "hunyuan_image") else 2
    expected = [-(-side // patch) for side in latent.shape[-2:]]
    assert list(grid[-2:]) == expected


def entropy(q, k, heads):
    """Confidence before it is stretched, from q and k (N, heads * dim), one head and query at a time."""
    n, dim = q.shape[0], q.shape[1] // heads
    certainty = torch.zeros(n)
    for head in range(heads):
        part = slice(head * dim, (head + 1) * dim)
        for i in range(n):
            p = torch.softmax((k[:, part].double() @ q[i, part].double()) / math.sqrt(dim), 0)
            certainty[i] += float(1 + (p * p.log()).sum() / math.log(len(k))) / heads
    return certainty


@pytest.mark.numerics
@pytest.mark.parametrize("family", ["sd3", "flux", "wan", "sd15"])
def test_the_map_is_the_entropy_of_the_positive_prompt(tiny, watch, seen_by, attentions, family):
    """Against a plain loop over the captured q and k; ComfyUI's batch is [uncond, cond]."""
    watched = watch(tiny.model(family))
    samples = tiny.sample(watched, family, steps=1)
    start, grid, q, k = attentions[len(attentions) // 2]
    assert len(q) == 2
    q, k = q[1], k[1]
    heads = 1
    if q.ndim == 3:  # (heads, N, dim)
        heads = len(q)
        q, k = (t.movedim(0, 1).flatten(1) for t in (q, k))
    elif family == "sd15":
        heads = 8
    elif family == "sd3":
        heads = tiny.model(family).model.diffusion_model.joint_blocks[0].x_block.attn.num_heads
    raw = entropy(q[start : start + math.prod(grid)], k, heads)
    stretched = (raw - raw.min()) / (raw.max() - raw.min())
    expected = stretched.view(grid)
    (call,) = seen_by(watched, samples)
    middle = expected[len(expected) // 2] if expected.ndim == 3 else expected
    assert heads <= 4 or family == "sd15"
    if heads <= 4:
        torch.testing.assert_close(call.maps["tokens"][0], middle, atol=2e-3, rtol=0)
    else:  # four of eight heads stand for all
        assert torch.corrcoef(torch.stack((call.maps["tokens"][0].flatten(), middle.flatten())))[0, 1] > 0.5


@pytest.mark.numerics
@pytest.mark.parametrize("family", ["sd3", "sd15"])
def test_prompts_run_one_by_one_give_the_same_map(tiny, watch, seen_by, monkeypatch, family):
    """With little memory ComfyUI runs cond and uncond apart."""
    watched = watch(tiny.model(family))

    def tokens(model):
        return seen_by(model, tiny.sample(model, family))[0].maps["tokens"]

    maps = []
    for needed in (0, 2**60):
        monkeypatch.setattr(watched.model, "memory_required", lambda *_, needed=needed, **__: needed)
        maps.append(tokens(watched))
    assert_equal_but_for_rounding(*maps, of_run(tokens, watched))


@pytest.mark.parametrize("order", ["before", "behind"])
def test_another_packs_override_still_runs(tiny, watch, seen_by, order):
    calls = []

    def other(func, *args, **kwargs):
        calls.append(func)
        return 1.01 * func(*args, **kwargs)

    def add_other(model):
        patched = model.clone()
        patched.model_options["transformer_options"]["optimized_attention_override"] = other
        return patched

    model = tiny.model("sd3")
    alone = tiny.sample(add_other(model), "sd3")
    count = len(calls)
    both = watch(add_other(model)) if order == "before" else add_other(watch(model))
    samples = tiny.sample(both, "sd3")
    assert torch.equal(samples, alone) and len(calls) == 2 * count > 0
    assert "tokens" in seen_by(both, samples)[0].maps


def test_after_the_first_call_one_layer_is_read(tiny, watch, monkeypatch):
    from gimbal.host.sampling import attention

    read = []
    kernel = attention.entropy_confidence
    monkeypatch.setattr(
        attention, "entropy_confidence", lambda *args, **kwargs: read.append(1) or kernel(*args, **kwargs)
    )
    tiny.sample(watch(tiny.model("sd15_deep")), "sd15_deep", steps=4)
    layers = len(read) - 3
    assert layers > 3, "the network has too few layers to tell"


def test_merged_tokens_cannot_be_read_and_that_is_said(tiny, watch, seen_by, caplog):
    from comfy_extras.nodes_tomesd import TomePatchModel

    merged = TomePatchModel.execute(tiny.model("sd15"), 0.5).args[0]
    watched = watch(merged)
    samples = tiny.sample(watched, "sd15")
    assert all("tokens" not in call.maps for call in seen_by(watched, samples))
    said = [line for line in caplog.messages if "took the gradient" in line]
    assert said == [
        "Watch Confidence (QSilk): took the gradient for the attention on 3 of 3 model calls. "
        "Attention among the image's tokens of UNetModel could not be seen."
    ]


def test_prompts_for_areas_fall_back_to_the_gradient(tiny, watch, caplog):
    import comfy.sample

    positive, negative = tiny.conditioning("sd3")
    positive[0][1].update(area=(8, 16, 8, 0), strength=1.0)
    latent = tiny.latent("sd3")
    noise = comfy.sample.prepare_noise(latent, 0)
    model = watch(tiny.model("sd3"))
    comfy.sample.sample(model, noise, 2, 3.0, "euler", "simple", positive, negative, latent, disable_pbar=True)
    assert "took the gradient for the attention on 2 of 2 model calls. Its conditions are for areas" in caplog.text


def test_aqclip_goes_by_it(tiny, denoised_seen, comfy):
    """The node's first step, from the map that the watching node saw on the same step."""
    from gimbal.core.aqclip import aqclip
    from gimbal.host.sampling.hooks import stages_of
    from gimbal.nodes.aqclip import GimbalAQClip

    options = {"corridor": "strong", "strength": 1.0, "tile": 6, "stride": 4, "ema_beta": 0.8}
    model = tiny.model("sd3")
    plain = denoised_seen(model)[0]
    by = {}
    for source in ("attention", "gradient"):
        patched = GimbalAQClip.execute(model, confidence=source, start_percent=0.0, end_percent=1.0, **options).args[0]
        by[source] = denoised_seen(patched)[0]
        (seen,) = stages_of(patched)[-1].observer._runs
        confidence = seen.calls[0].maps["certainty"]
        assert torch.equal(by[source], aqclip(plain, 6, 4, confidence=confidence, k_min=1.75, k_max=3.0))
    assert not torch.equal(by["attention"], by["gradient"])
