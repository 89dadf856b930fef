"""The contract of every MODEL node: no state outlives a run, samples do not mix, neutral is bit-exact.

Written once; a new node joins by a line in MODEL_NODES.
"""

import functools
import sys

import pytest
import torch
from rounding import assert_equal_but_for_rounding, of_batch, of_run, one_by_one

FAMILIES = ["sd3", "sd15", "sd15_v", "wan", "hunyuan_image", "flux"]

# node class in gimbal.nodes, with a remark where one class comes twice -> options that make it act
MODEL_NODES = {
    "micrograin.GimbalMicrograin": {
        "form": "smooth",
        "q_low": 0.02,
        "q_high": 0.98,
        "strength": 1.0,
        "start_percent": 0.0,
        "end_percent": 1.0,
        "knee": 0.5,
        "alpha": 2.0,
    },
    "aqclip.GimbalAQClip": {
        "corridor": "strong",
        "strength": 1.0,
        "start_percent": 0.0,
        "end_percent": 1.0,
        "tile": 6,
        "stride": 4,
        "ema_beta": 0.8,
        "confidence": "gradient",
    },
    "aqclip.GimbalAQClip by attention": {
        "corridor": "strong",
        "strength": 1.0,
        "start_percent": 0.0,
        "end_percent": 1.0,
        "tile": 6,
        "stride": 4,
        "ema_beta": 0.8,
        "confidence": "attention",
    },
    "samg.GimbalSAMG": {
        "preset": "w_min and w_max",
        "w_min": -1.0,
        "w_max": -1.0,
        "normalize": "quantile",
        "curve": "linear",
        "scope": "clip",
        "strength": 1.0,
        "start_percent": 0.0,
        "end_percent": 1.0,
    },
    "stabilise.GimbalStabilise": {
        "amount": 1.0,
        "along": 5.0,
        "across": 1.15,
        "fade": 1.0,
        "fine": 1.25,
        "models": "all models",
        "start_percent": 0.0,
        "end_percent": 1.0,
    },
    "qdrift.GimbalQDrift": {
        "stats": lambda model: sys.modules["tiny_models"].statistics(model),
        "correction": "drift",
        "strength": 1.0,
        "channels": "channel",
        "rule": "auto",
        "variance": "conditional",
        "bias": "off",
        "unsupported": "correct each call",
        "start_percent": 0.0,
        "end_percent": 1.0,
    },
}
BY_MOMENTS = "qdrift.GimbalQDrift by moments"
MODEL_NODES[BY_MOMENTS] = {**MODEL_NODES["qdrift.GimbalQDrift"], "correction": "moments"}
BY_LAYERS = "qdrift.GimbalQDrift by layers"
MODEL_NODES[BY_LAYERS] = {
    **MODEL_NODES["qdrift.GimbalQDrift"],
    "correction": "layers",
    "stats": lambda model: sys.modules["tiny_models"].layer_statistics(model),
}
BY_PLAN = "precision_plan.GimbalPrecisionPlan"
MODEL_NODES[BY_PLAN] = {"first_steps": 1, "last_steps": 1, "layers": ""}
STRENGTHS = ("strength", "amount")  # what a node's own is called
NEUTRAL = {BY_PLAN: {"first_steps": 0, "last_steps": 0}}  # of the others: strength 0
OTHER = {BY_PLAN: {"last_steps": 0}}  # of the others: start_percent 0.5
ON_QUANTIZED = (BY_PLAN,)  # nodes that act on models of this kind alone
ONE_OF_ITS_KIND = ("qdrift.GimbalQDrift", BY_MOMENTS, BY_LAYERS)  # a model carries one of these at most

pytestmark = [
    pytest.mark.parametrize("family", FAMILIES),
    pytest.mark.parametrize("node", MODEL_NODES),
]


def apply(node: str, model, **changes):
    import importlib

    module, name = node.split()[0].split(".")
    options = {**MODEL_NODES[node], **changes}
    options = {name: value(model) if callable(value) else value for name, value in options.items()}
    return getattr(importlib.import_module(f"gimbal.nodes.{module}"), name).execute(model, **options).args[0]


def neutral(node: str, model):
    strength = {name: 0.0 for name in STRENGTHS if name in MODEL_NODES[node]}
    return apply(node, model, **NEUTRAL.get(node, strength))


def plain(tiny, node: str, family: str):
    """The model that the node is put on."""
    return tiny.quantized(family) if node in ON_QUANTIZED else tiny.model(family)


class Cancelled(Exception):
    pass


def cancel_after(steps):
    def callback(step, *_):
        if step + 1 == steps:
            raise Cancelled

    return callback


def test_it_acts(tiny, node, family):
    model = plain(tiny, node, family)
    assert not torch.equal(tiny.sample(apply(node, model), family), tiny.sample(model, family))


def test_strength_zero_is_bit_exact(tiny, node, family):
    model = plain(tiny, node, family)
    assert torch.equal(tiny.sample(neutral(node, model), family), tiny.sample(model, family))


def test_neutral_copy_changes_nothing(tiny, node, family):
    patched = apply(node, plain(tiny, node, family))
    twice = neutral(node, patched)
    assert torch.equal(tiny.sample(twice, family), tiny.sample(patched, family))


def test_original_model_is_untouched(tiny, node, family):
    model = plain(tiny, node, family)
    before = tiny.sample(model, family)
    tiny.sample(apply(node, model), family)
    assert torch.equal(tiny.sample(model, family), before)


def test_every_run_starts_fresh(tiny, node, family):
    patched = apply(node, plain(tiny, node, family))
    first = tiny.sample(patched, family)
    assert torch.equal(tiny.sample(patched, family), first)
    with pytest.raises(Cancelled):
        tiny.sample(patched, family, callback=cancel_after(2))
    assert torch.equal(tiny.sample(patched, family), first)
    larger = tiny.sample(patched, family, latent=tiny.latent(family, batch=2, grow=4))
    assert larger.shape == tiny.latent(family, batch=2, grow=4).shape
    other_seed = tiny.sample(patched, family, seed=5)
    assert not torch.equal(other_seed, first)
    assert torch.equal(tiny.sample(patched, family), first)


def test_two_copies_share_no_state(tiny, node, family):
    model = plain(tiny, node, family)
    one, other = apply(node, model), apply(node, model)
    alone = tiny.sample(one, family)
    tiny.sample(other, family, seed=3)
    assert torch.equal(tiny.sample(one, family), alone)
    if node not in ONE_OF_ITS_KIND:
        chained = apply(node, apply(node, model))
        assert torch.equal(tiny.sample(chained, family), tiny.sample(chained, family))


def test_branches_of_one_chain_share_no_state(tiny, node, family):
    patched = apply(node, plain(tiny, node, family))
    alone = tiny.sample(patched, family)
    branch = apply(
        node,
        plain(tiny, node, family) if node in ONE_OF_ITS_KIND else patched,
        **OTHER.get(node, {"start_percent": 0.5}),
    )
    tiny.sample(branch, family)
    assert torch.equal(tiny.sample(patched, family), alone)


@pytest.fixture(scope="module")
def of_plain_batch(tiny):
    """`of_plain_batch(family, quantized)`: a batch of noise, how to run it, and what rounding does to it without a node."""

    @functools.cache
    def of_plain_batch(family, quantized):
        noise = torch.randn(tiny.latent(family, batch=4).shape, generator=torch.Generator().manual_seed(4))

        def run(model, noise):
            return tiny.sample(model, family, latent=torch.zeros_like(noise), noise=noise)

        model = tiny.quantized(family) if quantized else tiny.model(family)
        return noise, run, of_batch(run, model, noise)

    return of_plain_batch


@pytest.mark.numerics
def test_batch_equals_one_by_one(tiny, of_plain_batch, node, family):
    """The network itself rounds a batch differently; the nodes must add nothing to that."""
    noise, run, own = of_plain_batch(family, node in ON_QUANTIZED)
    patched = apply(node, plain(tiny, node, family))
    assert_equal_but_for_rounding(run(patched, noise), one_by_one(run, patched, noise), own)


@pytest.mark.parametrize("sampler", ["heun", "dpmpp_2m", "uni_pc", "euler_ancestral", "res_multistep"])
def test_repeats_under_every_kind_of_sampler(tiny, node, family, sampler):
    patched = apply(node, plain(tiny, node, family))
    if sampler == "uni_pc" and node == BY_MOMENTS:  # its steps cannot be read, and maps belong to steps
        with pytest.raises(ValueError, match="no corrected form"):
            tiny.sample(patched, family, sampler=sampler)
        return
    first = tiny.sample(patched, family, sampler=sampler)
    assert first.isfinite().all()
    assert torch.equal(tiny.sample(patched, family, sampler=sampler), first)


def test_inpainting_keeps_the_kept_region(tiny, node, family):
    patched = apply(node, plain(tiny, node, family))
    latent = torch.randn(tiny.latent(family).shape, generator=torch.Generator().manual_seed(2))
    mask = torch.zeros(1, 1, *latent.shape[-2:])
    half = latent.shape[-1] // 2
    mask[..., half:] = 1.0
    options = {"latent": latent, "noise_mask": mask, "denoise": 0.7}
    model = plain(tiny, node, family)
    before, result = (tiny.sample(each, family, **options) for each in (model, patched))
    if node in ONE_OF_ITS_KIND:  # it combines Euler's last step in another order
        own = of_run(lambda model: tiny.sample(model, family, **options)[..., :half], model, before[..., :half])
        assert_equal_but_for_rounding(result[..., :half], before[..., :half], own)
    else:
        assert torch.equal(result[..., :half], before[..., :half])
    assert not torch.equal(result[..., half:], before[..., half:])


@pytest.mark.numerics
def test_in_two_halves_and_by_custom_sampling_it_acts_the_same(tiny, comfy, node, family):
    """KSamplerAdvanced's ranges start runs of their own; SamplerCustomAdvanced is the same run by other nodes."""
    import comfy_extras.nodes_custom_sampler as custom

    def execute(name, *args):
        made = getattr(custom, name)
        made = made.execute(*args) if hasattr(made, "execute") else getattr(made(), made.FUNCTION)(*args)
        return made.args if hasattr(made, "args") else made

    patched = apply(node, plain(tiny, node, family))
    latent, steps = tiny.latent(family), 4
    whole = tiny.sample(patched, family, steps=steps)
    positive, negative = tiny.conditioning(family)
    sigmas = comfy.samplers.calculate_sigmas(patched.get_model_object("model_sampling"), "simple", steps)
    guider = execute("CFGGuider", patched, positive, negative, 3.0)[0]
    noise, sampler = execute("RandomNoise", 0)[0], comfy.samplers.sampler_object("euler")
    advanced = execute("SamplerCustomAdvanced", noise, guider, sampler, sigmas, {"samples": latent})[0]["samples"]
    assert torch.equal(advanced, whole)
    first = tiny.sample(patched, family, steps=steps, last_step=2)
    second = tiny.sample(patched, family, steps=steps, start_step=2, latent=first, noise=torch.zeros_like(first))
    if not node.startswith("aqclip"):  # whose average starts anew with each run
        own = of_run(lambda model: tiny.sample(model, family, steps=steps), plain(tiny, node, family))
        assert_equal_but_for_rounding(second, whole, own)
    assert second.isfinite().all()
