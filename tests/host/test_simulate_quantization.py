"""Simulate Quantization on real ComfyUI models: every family, LoRAs, narrow weights, partial loading, and what it refuses."""

import copy
import gc
import importlib
import re
import sys
import weakref

import pytest
import torch
import torch.nn.functional as F
from rounding import assert_equal_but_for_rounding
from torch import nn

FAMILIES = [
    *("sd3", "sd15", "sd15_v", "sd15_deep", "sdxl", "pixart", "wan", "hunyuan_video"),
    *("hunyuan_image", "flux", "chroma", "lumina2", "z_image", "qwen"),
]
FEW = ["sd3", "sd15", "wan", "flux"]
DEFAULTS = {
    "preset": "W4A4",
    "weight_bits": "by preset",
    "activation_bits": "by preset",
    "group_size": 64,
    "rank": 0,
    "layers": "blocks",
}
BITS = {"W3A4": (3, 4), "W4A4": (4, 4), "W4A8": (4, 8), "W8A8": (8, 8)}
NAME = "Simulate Quantization"


def simulate(model, **changes):
    node = importlib.import_module("gimbal.nodes.simulate_quantization").GimbalSimulateQuantization
    return node.execute(model, **{**DEFAULTS, **changes}).args


def quantized(model, **changes):
    return simulate(model, **changes)[0]


def own(weight_bits, activation_bits):
    return {"preset": "own", "weight_bits": weight_bits, "activation_bits": activation_bits}


def patched_layers(model):
    """name -> layer, of those that the node has changed."""
    names = [key.removesuffix(".forward") for key in model.object_patches if key.endswith(".forward")]
    return {name: model.model.get_submodule(name) for name in names}


def linear_names(model):
    kinds = (nn.Linear,)
    return {
        f"diffusion_model.{name}" for name, m in model.model.diffusion_model.named_modules() if isinstance(m, kinds)
    }


class Captured:
    """What goes in and out of layers during one sampling run of one step."""

    def __init__(self, tiny, model, family, **options):
        self.calls = {name: [] for name in patched_layers(model)}
        handles = [m.register_forward_hook(self._hook(name)) for name, m in patched_layers(model).items()]
        tiny.sample(model, family, steps=1, **options)
        for handle in handles:
            handle.remove()

    def _hook(self, name):
        def hook(module, args, result):
            self.calls[name].append((args[0].clone(), result.clone()))

        return hook


def levels(x, bits):
    """Along the last dimension."""
    scale = x.abs().amax(-1, keepdim=True) / (2 ** (bits - 1) - 1)
    return torch.where(scale > 0, (x / scale).round() * scale, 0.0)


def plain_reference(x, weight, bias, weight_bits, activation_bits, group):
    """What a quantized layer gives, in the plainest words."""
    weight = torch.cat([levels(piece, weight_bits) for piece in weight.float().split(group or weight.shape[1], 1)], 1)
    rounded = levels(x.float(), activation_bits) if activation_bits else x.float()
    return F.linear(rounded.double(), weight.double(), None if bias is None else bias.double())


def assert_close_to(found, expected, x, weight):
    """Within what rounding does to a product of the layer's size: the plain layer's own error, on the same input."""
    own = float((F.linear(x.float(), weight.float()).double() - F.linear(x.double(), weight.double())).abs().max())
    assert_equal_but_for_rounding(found.double(), expected.double(), own)


def assert_like_the_reference(captured, weights, bits, group, biases):
    for name, calls in captured.calls.items():
        assert calls, f"{name} was never asked"
        for x, y in calls:
            assert_close_to(y, plain_reference(x, weights[name], biases[name], *bits, group), x, weights[name])


def parameters(model, which="weight"):
    return {name: getattr(layer, which) for name, layer in patched_layers(model).items()}


@pytest.mark.parametrize("family", FAMILIES)
def test_acts_repeats_and_leaves_the_original_alone(tiny, family):
    model = tiny.model(family)
    before = tiny.sample(model, family, steps=2)
    coarse, fine = quantized(model), quantized(model, preset="W8A8", rank=8)
    first, second = tiny.sample(coarse, family, steps=2), tiny.sample(fine, family, steps=2)
    distance = [float((found - before).norm() / before.norm()) for found in (first, second)]
    assert first.isfinite().all() and second.isfinite().all()
    assert distance[0] > 3 * distance[1] > 0
    assert torch.equal(tiny.sample(coarse, family, steps=2), first)
    assert torch.equal(tiny.sample(model, family, steps=2), before)
    assert torch.equal(tiny.sample(fine, family, steps=2), second)
    assert torch.equal(tiny.sample(model, family, steps=2), before)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_layer_computes_as_the_plain_reference(tiny, family):
    patched = quantized(tiny.model(family))
    captured = Captured(tiny, patched, family)
    assert_like_the_reference(captured, parameters(patched), (4, 4), 64, parameters(patched, "bias"))


@pytest.mark.numerics
@pytest.mark.parametrize(
    ("options", "bits", "group"),
    [({"preset": preset}, BITS[preset], 64) for preset in BITS]
    + [
        ({**own("2", "off"), "group_size": 0}, (2, None), None),
        ({**own("5", "6"), "group_size": 100}, (5, 6), 100),
        ({"preset": "W8A8", "layers": "all linear"}, (8, 8), 64),
    ],
)
@pytest.mark.parametrize("family", ["sd3", "wan"])
def test_settings_are_what_is_computed(tiny, family, options, bits, group):
    patched = quantized(tiny.model(family), **options)
    captured = Captured(tiny, patched, family)
    assert_like_the_reference(captured, parameters(patched), bits, group, parameters(patched, "bias"))


@pytest.mark.numerics
@pytest.mark.parametrize("family", FEW)
def test_the_branch_is_full_precision_and_only_the_rest_is_rounded(tiny, family):
    from gimbal.core.fakequant import low_rank

    patched = quantized(tiny.model(family), rank=16)
    captured = Captured(tiny, patched, family)
    for name, layer in patched_layers(patched).items():
        A, B = low_rank(layer.weight, 16)  # itself tested elsewhere; another way to it would round differently
        U, S, V = torch.linalg.svd(layer.weight, full_matrices=False)
        torch.testing.assert_close(B @ A, (U[:, :16] * S[:16]) @ V[:16], rtol=1e-3, atol=1e-4 * float(S[0]))
        assert captured.calls[name]
        for x, y in captured.calls[name]:
            expected = F.linear(x.double(), (B.double() @ A.double()))
            expected += plain_reference(x, layer.weight - B @ A, layer.bias, 4, 4, 64)
            assert_close_to(y, expected, x, layer.weight)


@pytest.mark.parametrize("family", FEW)
def test_coarser_formats_are_further_off(tiny, family):
    model = tiny.model(family)
    plain = tiny.sample(model, family)

    def error(**options):
        return float((tiny.sample(quantized(model, **options), family) - plain).norm() / plain.norm())

    errors = [error(preset=preset) for preset in BITS]
    assert errors == sorted(errors, reverse=True) and errors[-1] < 0.05
    assert error(preset="W3A4", group_size=0) > error(preset="W3A4", group_size=16)
    assert error(preset="W8A8", layers="all linear") > errors[-1]


@pytest.mark.parametrize("rank", [0, 8])
@pytest.mark.parametrize("family", FEW)
def test_loras_before_and_behind_are_rounded_with_the_weights(tiny, family, rank):
    model = tiny.model(family)
    chosen = sorted(patched_layers(quantized(model)))[:3]
    generator = torch.Generator().manual_seed(0)
    deltas = {}
    for name in chosen:
        weight = model.model.get_submodule(name).weight
        deltas[name] = 0.3 * weight.std() * torch.randn(weight.shape, generator=generator)

    def with_lora(target, strength=1.0):
        target = target.clone()
        target.add_patches({f"{name}.weight": ("diff", (delta,)) for name, delta in deltas.items()}, strength)
        return target

    patched = quantized(model, rank=rank)
    plain, without = tiny.sample(model, family), tiny.sample(patched, family)
    before, behind = quantized(with_lora(model), rank=rank), with_lora(patched)
    half = with_lora(patched, 0.5)
    first = tiny.sample(before, family)
    assert torch.equal(tiny.sample(behind, family), first) and not torch.equal(first, without)
    halved = tiny.sample(half, family)  # shares its layers with `behind`, whose branch it must not use
    assert torch.equal(tiny.sample(quantized(with_lora(model, 0.5), rank=rank), family), halved)
    assert torch.equal(tiny.sample(behind, family), first)
    assert torch.equal(tiny.sample(patched, family), without)
    assert torch.equal(tiny.sample(model, family), plain)
    if not rank:
        merged = {name: weight + deltas.get(name, 0.0) for name, weight in parameters(patched).items()}
        assert_like_the_reference(Captured(tiny, behind, family), merged, (4, 4), 64, parameters(patched, "bias"))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2])
@pytest.mark.parametrize("family", FEW)
def test_narrow_weights(tiny, family, dtype):
    """As the loader's weight_dtype makes them: stored narrow, computed wide."""
    model = tiny.twin(family, dtype)
    plain = tiny.sample(model, family)
    patched, report = simulate(model)
    captured = Captured(tiny, patched, family)
    assert_like_the_reference(captured, parameters(patched), (4, 4), 64, parameters(patched, "bias"))
    assert not torch.equal(tiny.sample(patched, family), plain)
    assert torch.equal(tiny.sample(model, family), plain)
    narrow = str(dtype).removeprefix("torch.")
    assert (f"The model's weights are {narrow}" in report) == narrow.startswith("float8")


@pytest.mark.parametrize("family", ["sd3", "sd15"])
@pytest.mark.parametrize("rank", [0, 8])
def test_computing_in_half_precision(tiny, family, rank):
    model = tiny.twin(family, torch.bfloat16)
    model.set_model_compute_dtype(torch.bfloat16)
    plain = tiny.sample(model, family)
    first = tiny.sample(quantized(model, preset="W8A8", rank=rank), family)
    assert first.isfinite().all() and 0 < (first - plain).norm() < 0.2 * plain.norm()
    assert torch.equal(tiny.sample(model, family), plain)


@pytest.fixture
def little_memory(comfy, monkeypatch):
    """What --novram does, for a device that ComfyUI takes for no CPU: every weight stays off it until it is used."""
    management = comfy.model_management

    def switch():
        monkeypatch.setattr(management, "is_device_cpu", lambda device: False)
        monkeypatch.setattr(management, "vram_state", management.VRAMState.NO_VRAM)

    yield switch
    monkeypatch.undo()
    management.unload_all_models()


@pytest.mark.parametrize("family", FEW)
@pytest.mark.parametrize("rank", [0, 8])
def test_partly_loaded(tiny, comfy, little_memory, family, rank):
    model = tiny.model(family)
    names = sorted(patched_layers(quantized(model)))
    patches = {
        f"{name}.weight": ("diff", (0.01 * torch.ones_like(model.model.get_submodule(name).weight),))
        for name in names[:3]
    }
    model.add_patches(patches)
    patched = quantized(model, rank=rank)
    plain, first = tiny.sample(model, family), tiny.sample(patched, family)
    comfy.model_management.unload_all_models()
    little_memory()
    again = tiny.sample(patched, family)
    assert patched.model.model_lowvram and all(layer.comfy_cast_weights for layer in patched_layers(patched).values())
    assert torch.equal(again, first)
    assert torch.equal(tiny.sample(model, family), plain)


def test_nothing_is_left_on_the_network(tiny, comfy):
    from gimbal.host.simulating.fake_linear import FakeQuantized

    model = tiny.model("sd3")
    weights = {name: value.clone() for name, value in model.model.state_dict().items()}

    def changed():
        return [m for m in model.model.modules() if isinstance(m.forward, FakeQuantized)]

    patched = quantized(model, rank=4)
    assert not changed(), "nothing before it is loaded"
    tiny.sample(patched, "sd3")
    assert len(changed()) == len(patched_layers(patched))
    tiny.sample(model, "sd3")
    assert not changed()
    tiny.sample(patched, "sd3")
    comfy.model_management.unload_all_models()
    assert not changed()
    tiny.sample(patched, "sd3")
    layer = weakref.ref(next(iter(patched.object_patches.values())))
    del patched
    tiny.sample(model, "sd3")
    gc.collect()
    assert layer() is None and not changed()
    assert all(torch.equal(value, weights[name]) for name, value in model.model.state_dict().items())


def test_running_it_does_not_change_what_it_is(tiny):
    """Calibration tells models apart by a digest of what they carry."""
    from gimbal.calibration.fingerprint import digest

    model = tiny.model("sd3")
    patched = quantized(model, rank=4)
    before = digest(patched.object_patches)
    tiny.sample(patched, "sd3")
    assert digest(patched.object_patches) == before == digest(quantized(model, rank=4).object_patches)
    assert digest(quantized(model, rank=5).object_patches) != before


def test_others_can_ask_what_is_simulated(tiny):
    from gimbal.host.simulating.fake_linear import carried_quantization

    model = tiny.model("sd3")
    assert carried_quantization(model) is None
    assert (
        str(carried_quantization(quantized(model, rank=4).clone())) == "W4A4, groups of 64, low-rank branch of rank 4"
    )


def test_another_nodes_forward_stays_in_place(tiny):
    model = tiny.model("sd3")
    name = sorted(patched_layers(quantized(model)))[0]
    layer = model.model.get_submodule(name)
    inner, outer = model.clone(), quantized(model)
    inner.add_object_patch(f"{name}.forward", lambda x: nn.Linear.forward(layer, x) * 2)
    both = quantized(inner)
    assert not torch.equal(tiny.sample(both, "sd3"), tiny.sample(outer, "sd3"))
    assert not torch.equal(tiny.sample(both, "sd3"), tiny.sample(inner, "sd3"))


@pytest.mark.numerics
def test_a_product_beside_the_layers_own_is_left_alone(tiny):
    """As LoRAs that are computed on the way do it."""
    model = tiny.model("sd3")
    name = sorted(patched_layers(quantized(model)))[0]
    layer = model.model.get_submodule(name)
    down, up = torch.full((2, layer.in_features), 0.01), torch.full((layer.out_features, 2), 0.01)
    besides = model.clone()
    besides.add_object_patch(
        f"{name}.forward", lambda x: nn.Linear.forward(layer, x) + F.linear(F.linear(x, down), up)
    )
    captured = Captured(tiny, quantized(besides), "sd3")
    for x, y in captured.calls[name]:
        expected = plain_reference(x, layer.weight, layer.bias, 4, 4, 64) + F.linear(F.linear(x, down), up)
        assert_close_to(y, expected, x, layer.weight)


def test_with_the_pack_s_other_nodes(tiny):
    from gimbal.nodes.micrograin import GimbalMicrograin

    def clamped(model):
        options = {"form": "hard", "q_low": 0.02, "q_high": 0.98, "strength": 1.0, "knee": 0.5, "alpha": 2.0}
        return GimbalMicrograin.execute(model, **options, start_percent=0.0, end_percent=1.0).args[0]

    model = tiny.model("sd3")
    one, other = clamped(quantized(model)), quantized(clamped(model))
    assert torch.equal(tiny.sample(one, "sd3"), tiny.sample(other, "sd3"))
    assert not torch.equal(tiny.sample(one, "sd3"), tiny.sample(quantized(model), "sd3"))


# Report.


def reported(report):
    """(how many quantized, {reason: how many left})"""
    found = re.findall(r"^(Quantized|Left, [\w ]+): (\d+) linear layer", report, re.MULTILINE)
    counts = {title.removeprefix("Left, "): int(count) for title, count in found}
    return counts.pop("Quantized"), counts


@pytest.mark.parametrize(
    ("family", "count", "left"),
    [
        ("sd3", 13, {"embeddings": 5, "modulation": 4, "final layer": 2}),
        ("sd15", 10, {"embeddings": 2, "modulation": 3}),
        ("wan", 10, {"embeddings": 4, "modulation": 1, "final layer": 1}),
        ("flux", 10, {"embeddings": 8, "modulation": 3, "final layer": 2}),
        ("chroma", 10, {"embeddings": 8, "final layer": 1}),
        ("pixart", 7, {"embeddings": 4, "modulation": 1, "final layer": 1}),
        ("lumina2", 15, {"embeddings": 4, "modulation": 2, "final layer": 2}),
    ],
)
def test_usual_exclusions(tiny, family, count, left):
    assert reported(simulate(tiny.model(family))[1]) == (count, left)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_report_accounts_for_every_layer(tiny, family):
    model = tiny.model(family)
    patched, report = simulate(model)
    count, left = reported(report)
    assert count == len(patched_layers(patched))
    assert count + sum(left.values()) == len(linear_names(model))
    shares = [float(share) for share in re.findall(r"([\d.]+) % of the weights", report)]
    assert sum(shares) == pytest.approx(100, abs=0.5)
    listed = re.findall(r"^  (\S+)(?:  x (\d+))?$", report, re.MULTILINE)
    assert sum(int(times or 1) for _, times in listed) == len(linear_names(model))
    everything, report = simulate(model, layers="all linear")
    assert set(patched_layers(everything)) == linear_names(model)
    assert reported(report) == (len(linear_names(model)), {})


def test_the_report_says_what_was_chosen(tiny):
    model = tiny.model("sd3")
    assert simulate(model)[1].startswith("W4A4, groups of 64, no low-rank branch. Simulated")
    options = {**own("3", "off"), "group_size": 0, "rank": 16}
    report = simulate(model, **options)[1]
    assert report.startswith("W3A16, one scale per output channel, low-rank branch of rank 16.")
    assert "  joint_blocks.*.x_block.attn.qkv  x 2\n" in report and "LoRA" not in report
    model.add_patches({"diffusion_model.joint_blocks.0.x_block.attn.qkv.weight": ("diff", (torch.zeros(384, 128),))})
    assert "LoRAs on this model are merged first" in simulate(model)[1]


def test_layers_no_larger_than_the_branch_are_left_and_shown(tiny):
    model = tiny.model("sd3")  # hidden size 128, its text 64 wide
    patched, report = simulate(model, layers="all linear", rank=64)
    assert reported(report)[1] == {"too small for rank 64": 3}
    assert "diffusion_model.context_embedder" not in patched_layers(patched)
    with pytest.raises(ValueError, match=rf"{NAME}: none of the model's 24 linear layers .* a rank below 512"):
        simulate(model, rank=512)


# What it refuses.


@pytest.mark.parametrize(
    ("options", "bits"),
    [
        ({"weight_bits": "3"}, "W3A4,"),
        ({"preset": "W8A8", "activation_bits": "off"}, "W8A16,"),
        ({"preset": "own"}, "W4A4,"),
        ({"preset": "own", "weight_bits": "3"}, "W3A4,"),
        ({"preset": "own", "activation_bits": "8"}, "W4A8,"),
    ],
)
def test_bits_that_are_chosen_go_before_the_presets(tiny, options, bits):
    """No widget has to be set because another one was."""
    assert simulate(tiny.model("sd3"), **options)[1].startswith(bits)


class Opaque(torch.Tensor):
    """A weight whose numbers mean something else, as quantized formats' do."""


class GGUF(torch.Tensor):
    tensor_type = "Q4_0"


def stored(kind, weight):
    if kind == "scaled fp8":
        return nn.Parameter(weight.to(torch.float8_e4m3fn), requires_grad=False)
    if kind == "int8":
        return nn.Parameter(weight.to(torch.int8), requires_grad=False)
    return nn.Parameter(weight.as_subclass({"GGUF Q4_0": GGUF, "Opaque": Opaque}[kind]), requires_grad=False)


@pytest.mark.parametrize("kind", ["GGUF Q4_0", "Opaque", "int8", "scaled fp8"])
def test_quantized_models_are_refused(tiny, kind):
    model = tiny.twin("sd3", torch.float32)
    layer = model.model.diffusion_model.joint_blocks[1].x_block.mlp.fc1
    layer.weight = stored(kind, layer.weight.data)
    if kind == "scaled fp8":
        layer.scale_weight = nn.Parameter(torch.ones(()))
    with pytest.raises(
        ValueError, match=rf"{NAME}: this model is quantized already \(joint_blocks.1.x_block.mlp.fc1 is {kind}\); use"
    ):
        simulate(model)


def test_comfyui_s_own_quantized_weights_are_refused(tiny, comfy):
    quant_ops = pytest.importorskip("comfy.quant_ops", reason="this ComfyUI has no quantized tensors yet")
    if not hasattr(quant_ops.QuantizedTensor, "from_float"):
        pytest.skip("this ComfyUI makes quantized tensors by comfy-kitchen, which is not installed")
    model = tiny.twin("sd3", torch.float32)
    layer = model.model.diffusion_model.joint_blocks[1].x_block.mlp.fc1
    make = quant_ops.QuantizedTensor.from_float
    layer.weight = nn.Parameter(make(layer.weight.data, "TensorCoreFP8Layout", scale=None), requires_grad=False)
    with pytest.raises(ValueError, match=rf"{NAME}: this model is quantized already .*TensorCoreFP8"):
        simulate(model)


def test_it_is_used_once(tiny):
    patched = quantized(tiny.model("sd3"))
    with pytest.raises(ValueError, match=rf"{NAME}: this model carries a {NAME} already \(W4A4, groups of 64"):
        simulate(patched)


def test_compiled_models_are_refused(tiny):
    model = tiny.model("sd3")
    model.add_object_patch("diffusion_model", torch.compile(model.model.diffusion_model))
    with pytest.raises(ValueError, match=r"diffusion_model is compiled; put torch.compile behind this node"):
        simulate(model)


def test_a_network_without_linear_layers_is_refused(tiny):
    model = tiny.model("sd3")
    model.model = copy.copy(model.model)
    model.model._modules = {**model.model._modules, "diffusion_model": nn.Conv2d(1, 1, 1)}
    with pytest.raises(ValueError, match=rf"{NAME}: Conv2d has no linear layers of a kind that it knows"):
        simulate(model)


def test_a_layer_that_computes_by_other_means_stops_the_run(tiny):
    model = tiny.model("sd3")
    name = sorted(patched_layers(quantized(model)))[0]
    layer = model.model.get_submodule(name)
    other = model.clone()
    other.add_object_patch(f"{name}.forward", lambda x: x @ layer.weight.T + layer.bias)
    with pytest.raises(
        ValueError, match=rf"{NAME}: the layer {name.removeprefix('diffusion_model.')} does not compute"
    ):
        tiny.sample(quantized(other), "sd3")


def test_over_http(server):
    from devkit import client

    def graph(**options):
        chosen = {"model": ["1", 0], **DEFAULTS, **options}
        latent = {"positive": ["2", 0], "negative": ["2", 1], "latent_image": ["2", 2]}
        run = {"seed": 1, "steps": 4, "cfg": 6.0, "sampler_name": "euler", "scheduler": "simple", "denoise": 1.0}
        model = {"unet_name": "gimbal_letters_fp16.safetensors", "weight_dtype": "default"}
        return {
            "1": {"class_type": "UNETLoader", "inputs": model},
            "2": {"class_type": "GimbalDemoLetters", "inputs": {"text": "G", "rows": 1}},
            "3": {"class_type": "GimbalSimulateQuantization", "inputs": chosen},
            "4": {"class_type": "KSampler", "inputs": {"model": ["3", 0], **latent, **run}},
            "5": {"class_type": "GimbalDemoDecode", "inputs": {"latent": ["4", 0]}},
            "6": {"class_type": "SaveImage", "inputs": {"images": ["5", 0], "filename_prefix": "simulated"}},
            "7": {"class_type": "PreviewAny", "inputs": {"source": ["3", 1]}},
        }

    result = client.run(server.url, graph())
    assert len(result.images("6")) == 1
    assert "W4A4, groups of 64, no low-rank branch" in str(result.outputs["7"]) and "Left, modul" in str(
        result.outputs["7"]
    )
    client.run(server.url, graph(**own("3", "off"), rank=8, layers="all linear"))
    result = client.run(server.url, graph(weight_bits="3"))
    assert "W3A4, groups of 64" in str(result.outputs["7"])


def test_every_family_is_tried(tiny):
    assert set(FAMILIES) == {*sys.modules["tiny_models"].FAMILIES, sys.modules["tiny_models"].V_PREDICTION}
