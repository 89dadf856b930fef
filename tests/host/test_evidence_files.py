"""The benchmark's networks in ComfyUI's own quantized formats."""

import sys

import pytest
import torch

LEVEL, LABELS = 0.7, torch.arange(4)


@pytest.fixture
def bench(comfy, comfyui_home, tmp_path, monkeypatch):
    """The benchmark's modules, with their files in a folder of the test."""
    monkeypatch.setattr(sys, "argv", sys.argv)  # building the network gives ComfyUI another
    from evidence import files, subjects

    monkeypatch.setattr(files, "FOLDER", tmp_path)
    return files, subjects.load(files.KIND, comfyui_home, "float32")


def output(subject, network):
    from dataclasses import replace

    x = torch.randn(len(LABELS), 16, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        return replace(subject, network=network).output(x, LEVEL, LABELS, 3.0)


def known(algorithm):
    try:
        from comfy.quant_ops import QUANT_ALGOS
    except ImportError:
        return False
    return algorithm in QUANT_ALGOS


def test_files_are_loaded_and_rounded_or_it_is_said_that_they_cannot(bench):
    files, full = bench
    exact = output(full, full.network)
    off = {}
    for name, kind in files.FILES.items():
        if not known(kind.algorithm):
            with pytest.raises(ValueError, match=rf"needs a ComfyUI that reads {kind.algorithm}; .* does not"):
                files.loaded(kind, full.network)
            continue
        pytest.importorskip("comfy_kitchen", reason="ComfyUI's quantized formats need comfy-kitchen")
        off[name] = float((output(full, files.loaded(kind, full.network)) - exact).norm() / exact.norm())
    assert all(0.02 < each < 1.0 for each in off.values()), off
    for name in off:
        weights = name.removesuffix(", activations too")
        assert name == weights or off[name] > 1.3 * off.get(weights, 0.0), off


def test_activations_are_rounded_by_the_formats_own_quantizer(bench):
    files, _ = bench
    if not known("mxfp8"):
        pytest.skip("this ComfyUI does not read mxfp8")
    pytest.importorskip("comfy_kitchen", reason="ComfyUI's quantized formats need comfy-kitchen")
    layer = torch.nn.Identity()
    layer.layout_type = "TensorCoreMXFP8Layout"
    layer.register_forward_pre_hook(files._round_input)
    x = torch.zeros(2, 3, 64)
    x[..., 0], x[..., 1], x[..., 2] = (
        1.0,
        1.03,
        100.0,
    )  # blocks of 32 share a power of two; e4m3 has 3 bits behind the 1
    rounded = layer(x)
    assert (
        rounded.shape == x.shape
        and torch.equal(rounded[0, 0, :2], torch.ones(2))
        and float(rounded[0, 0, 2]) in (96.0, 104.0)
    )
