"""Quantized twins: which weights, how far they are rounded, and what is refused."""

import json
import subprocess
import zipfile

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from devkit import gguf_pack
from devkit.paths import Stop
from devkit.quantized import formats, layers

# A name of each kind, as the files of several families have them -> is it quantized?
NAMES = {
    "joint_blocks.0.x_block.attn.qkv.weight": True,
    "joint_blocks.0.x_block.mlp.fc1.weight": True,
    "joint_blocks.0.x_block.adaLN_modulation.1.weight": False,
    "double_blocks.12.img_attn.proj.weight": True,
    "double_blocks.12.img_mod.lin.weight": False,
    "single_blocks.3.linear1.weight": True,
    "single_blocks.3.modulation.lin.weight": False,
    "blocks.7.cross_attn.k.weight": True,
    "transformer_blocks.5.attn.to_q.weight": True,
    "transformer_blocks.5.img_mod.1.weight": False,
    "input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight": True,
    "input_blocks.4.0.emb_layers.1.weight": False,
    "layers.2.attention.qkv.weight": True,
    "layers.2.adaLN_modulation.1.weight": False,
    "context_embedder.weight": False,
    "t_embedder.mlp.0.weight": False,
    "final_layer.linear.weight": False,
}


@pytest.fixture
def model(tmp_path):
    """A file with two layers to quantize and what is to be left alone, in half precision."""
    generator = torch.Generator().manual_seed(0)
    shapes = {
        "joint_blocks.0.x_block.attn.qkv.weight": (192, 64),
        "joint_blocks.0.x_block.attn.qkv.bias": (192,),
        "joint_blocks.0.x_block.mlp.fc1.weight": (128, 64),
        "x_embedder.proj.weight": (64, 16, 2, 2),
        "final_layer.linear.weight": (64, 64),
        "volume.weight": (4, 3, 2, 2, 2),
    }
    weights = {name: torch.randn(shape, generator=generator).half() for name, shape in shapes.items()}
    save_file(weights, tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors", weights


def test_the_blocks_matrices_are_chosen_and_no_others():
    weights = {name: torch.zeros(64, 64) for name in NAMES}
    assert set(layers.block_linears(weights)) == {name for name, chosen in NAMES.items() if chosen}
    odd = {"blocks.0.q.weight": torch.zeros(64, 48), "blocks.0.k.weight": torch.zeros(48, 64)}
    assert layers.block_linears(odd, 32) == ["blocks.0.k.weight"]
    assert layers.block_linears({"blocks.0.conv.weight": torch.zeros(8, 8, 3, 3)}) == []


# e4m3 has 3 bits after the point: half a step is at most 1/16 of the value, 1/16/sqrt(3) on the mean of a uniform error.
@pytest.mark.parametrize("name", ["fp8", "fp8_scaled", "fp8_mixed", "fp8_tagged"])
def test_fp8_is_off_by_its_rounding(model, tmp_path, name):
    source, weights = model
    twin = formats.make(source, name, tmp_path / "twin.safetensors")
    made = load_file(twin.path)
    assert {key for key, value in made.items() if value.dtype == torch.float8_e4m3fn} - {"scaled_fp8"} == set(
        twin.quantized
    )
    for key in weights:
        found = made[key].float()
        for scale in ("scale_weight", "weight_scale"):
            found = found * made.get(f"{layers.layer(key)}.{scale}", torch.tensor(1.0))
        if key in twin.kept:
            assert torch.equal(made[key], weights[key]), key
        else:
            off = (found - weights[key].float()).abs() / weights[key].float().abs().clamp(min=2**-6)
            assert 0.01 < float(off.mean()) < 1 / 16 and float(off.max()) < 1 / 15, key
    with safe_open(twin.path, "pt") as file:
        header = file.metadata() or {}
    listed = json.loads(header.get("_quantization_metadata", '{"layers": {}}'))["layers"]
    assert set(listed) == ({layers.layer(key) for key in twin.quantized} if name == "fp8_mixed" else set())
    assert ("scaled_fp8" in made) == (name == "fp8_scaled")
    tags = {key: value for key, value in made.items() if key.endswith(".comfy_quant")}
    assert len(tags) == (len(twin.quantized) if name == "fp8_tagged" else 0)
    assert all(json.loads(bytes(value.tolist())) == {"format": "float8_e4m3fn"} for value in tags.values())


# Half a step of a group whose largest value is about 2.5 standard deviations: 2.5/127/sqrt(3), /16/..., /8/...
@pytest.mark.parametrize(("name", "low", "high"), [("q8_0", 0.004, 0.008), ("q5_0", 0.03, 0.06), ("q4_0", 0.07, 0.12)])
def test_gguf_is_off_by_its_rounding(model, tmp_path, name, low, high):
    pytest.importorskip("gguf", reason="the package gguf is not installed")
    from devkit.quantized import gguf_file

    source, weights = model
    twin = formats.make(source, f"gguf-{name}", tmp_path / "twin.gguf")
    assert len(twin.quantized) == 2 and twin.share == pytest.approx(
        320 * 64 / sum(w.numel() for w in weights.values())
    )
    made = gguf_file.read(twin.path)
    for key, weight in weights.items():
        off = float((made[key].reshape(weight.shape) - weight.float()).norm() / weight.float().norm())
        assert low < off < high if key in twin.quantized else off == 0.0, (key, off)


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [
        ("nvfp4", 0.07, 0.12),
        ("mxfp8", 0.02, 0.035),
        ("int8", 0.008, 0.016),
        ("convrot_w4a4", 0.1, 0.16),
        ("asym_w4a8", 0.05, 0.1),
    ],
)
def test_the_kitchens_formats_are_off_by_their_rounding(model, tmp_path, name, low, high):
    tensor = pytest.importorskip("comfy_kitchen.tensor", reason="the package comfy-kitchen is not installed")
    from devkit.quantized import kitchen

    source, weights = model
    twin = formats.make(source, name, tmp_path / "twin.safetensors")
    made = load_file(twin.path)
    algorithm = {"int8": "int8_tensorwise", "asym_w4a8": "asym_w4a8_int8"}.get(name, name)
    names = {"nvfp4": {"scale": "scale_2", "block_scale": "scale"}}  # in the file, of what a layout calls otherwise
    names["asym_w4a8"] = {"scale": "s_rel", "s_channel": "s_channel", "codebook": "codebook"}
    rotated = {"convrot_groupsize": 64} if name in ("convrot_w4a4", "asym_w4a8") else {}
    for key in twin.quantized:
        stated = json.loads(bytes(made[f"{layers.layer(key)}.comfy_quant"].tolist()))
        assert stated == {"format": algorithm, **rotated}
        layout = tensor.get_layout_class(kitchen.ALGORITHMS[algorithm][0])
        scales = {ours: made[f"{key}_{theirs}"] for ours, theirs in names.get(name, {"scale": "scale"}).items()}
        scales |= rotated
        params = layout.Params(**scales, orig_dtype=torch.float32, orig_shape=tuple(weights[key].shape))
        found = layout.dequantize(made[key], params)
        off = float((found - weights[key].float()).norm() / weights[key].float().norm())
        assert low < off < high, (key, off)


def test_what_cannot_be_made_is_said(model, tmp_path):
    source, weights = model
    with pytest.raises(Stop, match=r"ends in \.gguf; twin\.safetensors does not"):
        formats.make(source, "gguf-q8_0", tmp_path / "twin.safetensors")
    with pytest.raises(Stop, match="there is no format 'q2'"):
        formats.make(source, "q2", tmp_path / "twin.gguf")
    with pytest.raises(Stop, match=r"is not a \.safetensors file"):
        formats.make(tmp_path / "none.safetensors", "fp8", tmp_path / "twin.safetensors")
    formats.make(source, "fp8", tmp_path / "fp8.safetensors")
    with pytest.raises(Stop, match="is quantized already"):
        formats.make(tmp_path / "fp8.safetensors", "fp8", tmp_path / "twin.safetensors")
    save_file({f"model.diffusion_model.{key}": value for key, value in weights.items()}, tmp_path / "all.safetensors")
    with pytest.raises(Stop, match="is a whole checkpoint"):
        formats.make(tmp_path / "all.safetensors", "fp8", tmp_path / "twin.safetensors")
    save_file({"final_layer.linear.weight": torch.zeros(8, 8)}, tmp_path / "none.safetensors")
    with pytest.raises(Stop, match="no linear layer in a numbered block"):
        formats.make(tmp_path / "none.safetensors", "fp8_mixed", tmp_path / "twin.safetensors")
    assert not list(tmp_path.glob("twin*"))


def test_the_gguf_pack_comes_out_of_an_archive_or_a_repository(tmp_path, monkeypatch):
    files = {"nodes.py": b"NODES = 1\n", "tools/convert.py": b""}
    monkeypatch.delenv("GIMBAL_GGUF", raising=False)
    monkeypatch.setattr(gguf_pack, "SHA256", gguf_pack.digest(files))
    with zipfile.ZipFile(tmp_path / "pack.zip", "w") as archive:
        archive.mkdir("ComfyUI-GGUF-795e451")
        for name, content in files.items():
            archive.writestr(f"ComfyUI-GGUF-795e451/{name}", content)
    monkeypatch.setattr(gguf_pack, "URL", (tmp_path / "pack.zip").as_uri())
    monkeypatch.setattr(gguf_pack, "HOME", tmp_path / "github" / "pack")
    assert gguf_pack.locate() == gguf_pack.HOME
    assert {name: (gguf_pack.HOME / name).read_bytes() for name in files} == files
    copied = gguf_pack.install(tmp_path / "custom_nodes")
    assert (copied / "tools" / "convert.py").is_file()

    repository = tmp_path / "repository"
    for name, content in files.items():
        (repository / name).parent.mkdir(parents=True, exist_ok=True)
        (repository / name).write_bytes(content)
    author = ["-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false", "-c", "core.autocrlf=false"]
    for command in (["init", "-q"], ["add", "."], [*author, "commit", "-q", "-m", "one"]):
        subprocess.run(["git", *command], cwd=repository, check=True)
    monkeypatch.setattr(gguf_pack, "COMMIT", "HEAD")
    monkeypatch.setattr(gguf_pack, "HOME", tmp_path / "git" / "pack")
    monkeypatch.setenv("GIMBAL_GGUF", str(repository / ".git"))  # as a bare one: no nodes.py lies in it
    assert gguf_pack.locate() == gguf_pack.HOME and (gguf_pack.HOME / "nodes.py").read_bytes() == files["nodes.py"]


def test_the_gguf_pack_is_found_or_asked_for(tmp_path, monkeypatch):
    pack = tmp_path / "pack"
    pack.mkdir()
    (pack / "nodes.py").write_text("")
    monkeypatch.setenv("GIMBAL_GGUF", str(pack))
    assert gguf_pack.locate() == pack.resolve()
    monkeypatch.setattr(gguf_pack, "HOME", tmp_path / "kept" / "pack")
    monkeypatch.setenv("GIMBAL_GGUF", str(tmp_path))
    with pytest.raises(Stop, match=r"neither a folder with the pack's nodes.py nor a git repository"):
        gguf_pack.locate()
    with pytest.raises(Stop, match=r"is not the one expected \(sha256 [0-9a-f]{64}\); it was not kept"):
        gguf_pack._keep({"nodes.py": b"something else"})
    assert not (tmp_path / "kept").exists()
