"""The precision plan on quantized files as ComfyUI loads and computes them, on the CPU."""

import contextlib
import importlib.util
import json
import logging
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from quantized_layouts import ALGORITHMS
from rounding import allowed, assert_equal_but_for_rounding, of_run
from safetensors import safe_open
from safetensors.torch import load_file, save_file

ROOT = Path(__file__).resolve().parents[2]
MODEL = ROOT / "demo" / "models" / "gimbal_letters_fp16.safetensors"
NODE, STEPS = "Keep Composition (Precision Plan)", 4


@pytest.fixture(scope="module")
def letters():
    """positive, negative, latent."""
    spec = importlib.util.spec_from_file_location("demo_codes", ROOT / "demo" / "gimbal_demo" / "conditioning.py")
    conditioning = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(conditioning)
    labels = conditioning.labels("GM")
    pairs = [conditioning.codes(which) for which in (labels, torch.full_like(labels, -1))]
    return *[[[context, {"pooled_output": pooled}]] for context, pooled in pairs], torch.zeros(len(labels), 16, 16, 16)


@pytest.fixture
def load(comfy, tmp_path):
    """`load(format)`: the demo's flow model in that format. Skips where this ComfyUI does not read it."""
    from devkit.paths import Stop
    from devkit.quantized import formats

    def load(name, change=lambda path: None):
        try:
            from comfy.quant_ops import QUANT_ALGOS
        except ImportError:
            QUANT_ALGOS = {}
        if name in ALGORITHMS and ALGORITHMS[name] not in QUANT_ALGOS:
            pytest.skip(f"this ComfyUI does not read {name}")
        path = tmp_path / f"{name}.safetensors"
        try:
            formats.make(MODEL, name, path)
        except Stop as stop:
            pytest.skip(str(stop))
        change(path)
        return comfy.sd.load_diffusion_model(str(path))

    return load


@pytest.fixture
def sample(comfy, letters):
    def sample(model, **options):
        positive, negative, latent = letters
        noise = comfy.sample.prepare_noise(latent, 5)
        how = {"disable_pbar": True, "seed": 5, **options}
        return comfy.sample.sample(model, noise, STEPS, 3.0, "euler", "simple", positive, negative, latent, **how)

    return sample


@pytest.fixture
def said(caplog, sample):
    """What the node says of a run, and the run's samples."""

    def said(model):
        with caplog.at_level(logging.INFO, "gimbal"):
            caplog.clear()
            samples = sample(model)
        return [line for line in caplog.messages if line.startswith(NODE)], samples

    return said


def planned(model, first, layers=""):
    from gimbal.nodes.precision_plan import GimbalPrecisionPlan

    return GimbalPrecisionPlan.execute(model, first, 0, layers).args[0]


def mixed_layers(model):
    return [each for each in model.model.diffusion_model.modules() if getattr(each, "layout_type", None) is not None]


@contextlib.contextmanager
def unpacked(layers):
    """While it is entered, each layer gives its unpacked weight's product with what it was given."""

    def exact(module, args, _):
        return F.linear(args[0], module.weight.dequantize().to(args[0].dtype), module.bias)

    handles = [each.register_forward_hook(exact) for each in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def assert_plan_switches(model, sample, said):
    layers = mixed_layers(model)
    assert layers and not any(each._full_precision_mm for each in layers)
    functions = [list(each.weight_function) for each in layers]
    rounded = sample(model)
    with unpacked(layers):
        unrounded = sample(model)
        own = of_run(sample, model, unrounded)
    assert float((rounded - unrounded).abs().max()) > allowed(unrounded, own)
    lines, found = said(planned(model, STEPS))
    assert_equal_but_for_rounding(found, unrounded, own)
    assert lines == [
        f"{NODE}: ran 4 of 4 steps with unrounded activations, 100 % of these layers' multiply-adds in full precision."
    ]
    lines, found = said(planned(model, 1))
    assert "ran 1 of 4 steps" in lines[0] and "25 %" in lines[0]
    assert not torch.equal(found, unrounded) and not torch.equal(found, rounded)
    assert not any(each._full_precision_mm for each in layers)
    assert [list(each.weight_function) for each in layers] == functions

    def stop(*_):
        raise KeyboardInterrupt

    handle = layers[-1].register_forward_hook(stop)
    with pytest.raises(KeyboardInterrupt):
        sample(planned(model, 1))
    handle.remove()
    assert not any(each._full_precision_mm for each in layers)
    assert [list(each.weight_function) for each in layers] == functions
    assert torch.equal(sample(model), rounded)


@pytest.mark.parametrize("name", ["int8", "convrot_w4a4", "asym_w4a8"])
def test_layers_whose_kernel_rounds_are_switched(load, sample, said, name):
    """It rounds activations itself, on any device."""
    assert_plan_switches(load(name), sample, said)


def with_input_scales(path):
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    weights = load_file(path)
    for name in [name for name in weights if name.endswith(".weight_scale")]:
        weights[name.replace(".weight_scale", ".input_scale")] = torch.tensor(0.02)
    save_file(weights, path, metadata)
    assert json.loads(metadata["_quantization_metadata"])["layers"]


def test_fp8_layers_with_scaled_inputs_are_switched(comfy, load, sample, said, monkeypatch):
    """Under the flag --supports-fp8-compute: the CPU has such products."""
    monkeypatch.setattr(comfy.model_management, "SUPPORT_FP8_OPS", True)
    assert_plan_switches(load("fp8_mixed", with_input_scales), sample, said)


@pytest.mark.parametrize("name", ["fp8", "fp8_scaled", "fp8_mixed", "nvfp4", "mxfp8"])
def test_formats_that_round_no_activations_on_this_device_get_a_message(load, sample, said, name):
    model = load(name)
    lines, found = said(planned(model, 2))
    assert lines == [
        f"{NODE}: did nothing. This model rounds no activations here, and its weights' own error cannot be repaired so."
    ]
    assert torch.equal(found, sample(model))


def test_a_calibration_goes_by_an_int8_file_itself(load, folders, letters):
    from gimbal.nodes.qdrift_calibrate import GimbalQDriftCalibrate

    model = load("int8")
    how = {"cfg": 3.0, "sampler_name": "euler", "scheduler": "simple", "steps": STEPS, "runs": 2, "first_seed": 0}
    how |= {
        "held_out": 0,
        "prompts": "",
        "negative_prompt": "",
        "correction": "drift",
        "mode": "two passes",
        "trim": 0.0,
    }
    given = {"latent": {"samples": letters[2]}, "positive": letters[0], "negative": letters[1], "filename": "own"}
    found = GimbalQDriftCalibrate.execute(quantized_model=model, **how, **given).args[0]
    assert float(found.m2.abs().sum()) > 0 and "unrounded activations" in found.provenance.reference
    assert not any(each._full_precision_mm for each in mixed_layers(model))
