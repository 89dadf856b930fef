"""The layer correction on models as people load them: GGUF by its own pack, partly on the device, with other modules."""

import copy
import importlib.util
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from rounding import assert_equal_but_for_rounding, of_run
from torch import nn

pytestmark = pytest.mark.usefixtures("folders")

LETTERS = Path(__file__).resolve().parents[2] / "demo" / "models" / "gimbal_letters_fp16.safetensors"
HOW = {"strength": 1.0, "channels": "scalar", "rule": "auto", "variance": "conditional", "bias": "off"}
HOW |= {"unsupported": "stop with an error", "start_percent": 0.0, "end_percent": 1.0}


def corrected(model, stats, correction="layers"):
    from gimbal.nodes.qdrift import GimbalQDrift

    return GimbalQDrift.execute(model, stats, **{**HOW, "correction": correction}).args[0]


def network(model):
    return model.model.diffusion_model


def hooks(model):
    return [name for name, module in network(model).named_modules() if module._forward_hooks]


def lora(model, stats, size=0.02):
    """A clone with low-rank patches on the corrected layers, as a LoRA loader makes them."""
    from comfy.weight_adapter import LoRAAdapter

    clone, patches = model.clone(), {}
    generator = torch.Generator().manual_seed(0)
    for place in stats.layers.places:
        layer, key = network(model).get_submodule(place.name), f"diffusion_model.{place.name}.weight"
        up = size * torch.randn(layer.out_features, 4, generator=generator)
        down = torch.randn(4, layer.in_features, generator=generator)
        patches[key] = LoRAAdapter({key}, (up, down, 4.0, None, None, None))
    assert len(clone.add_patches(patches, 1.0)) == len(patches)
    return clone


def assert_it_corrects(sample, model, stats, correction="layers"):
    """Its result, which is finite and another one than plain sampling's; the model is as it was."""
    plain = sample(model)
    found = sample(corrected(model, stats, correction))
    own = of_run(sample, model, plain)
    assert bool(found.isfinite().all()) and float((found - plain).abs().max()) > 10 * own
    assert not hooks(model)
    assert_equal_but_for_rounding(sample(model), plain, own)
    return found


@contextmanager
def half_loaded(monkeypatch, comfy):
    """ComfyUI's own partial loading, for a device that has room for half of a model."""
    import comfy.model_management as management

    loaded = []

    def use(self, extra_memory, force_patch_weights=False):
        loaded.append(self.model)
        self.model.detach()  # what an earlier run has loaded whole stays whole
        return self.model.partially_load(self.device, self.model.model_size() / 2, force_patch_weights)

    management.unload_all_models()
    with monkeypatch.context() as patch:
        patch.setattr(management.LoadedModel, "model_use_more_vram", use)
        yield loaded
    management.unload_all_models()


# Partly loaded.


def test_a_partly_loaded_model_is_calibrated_and_corrected(comfy, tiny, twin, calibrate, monkeypatch):
    """As --lowvram does it: weights stay behind and come for one layer's call, patches with them."""
    whole, quantized = calibrate(correction="drift and moments")[0], twin("sd3")
    batch = torch.randn(3, *tiny.latent("sd3").shape[1:], generator=torch.Generator().manual_seed(1))

    def sample(model, cfg=3.0):
        return tiny.sample(model, "sd3", latent=torch.zeros_like(batch), noise=batch, cfg=cfg)

    with_lora = lora(quantized, whole)
    runs = {(name, cfg): (model, lambda model, cfg=cfg: sample(model, cfg))
            for name, model in (("plain", quantized), ("with LoRA", with_lora)) for cfg in (1.0, 3.0)}  # fmt: skip
    wanted = {key: assert_it_corrects(run, model, whole) for key, (model, run) in runs.items()}
    own = {key: of_run(run, corrected(model, whole)) for key, (model, run) in runs.items()}
    assert float((wanted["plain", 3.0] - wanted["with LoRA", 3.0]).abs().max()) > 10 * own["plain", 3.0]
    with half_loaded(monkeypatch, comfy) as loaded:
        for key, (model, run) in runs.items():
            found = assert_it_corrects(run, model, whole)
            assert loaded[-1].model.model_lowvram
            patched = loaded[-1].lowvram_patch_counter() > 0
            assert patched == (key[0] == "with LoRA")
            if not patched:  # a patch that is loaded whole is rounded to float8 with its weight
                assert_equal_but_for_rounding(found, wanted[key], own[key])
        again = calibrate(correction="drift and moments", filename="half", first_seed=21)[0]
    assert again.layers is not None and again.layers.places == whole.layers.places and not hooks(quantized)
    assert_it_corrects(sample, quantized, again, "layers and moments")


# GGUF.


@pytest.fixture(scope="module")
def gguf_pack(comfy):
    """ComfyUI-GGUF's own nodes, in this process."""
    from devkit import gguf_pack
    from devkit.paths import Stop

    if importlib.util.find_spec("gguf") is None:
        pytest.skip("needs the package gguf")
    try:
        folder = gguf_pack.locate()
    except Stop as stop:
        pytest.skip(str(stop))
    import folder_paths

    names = dict(folder_paths.folder_names_and_paths)
    spec = importlib.util.spec_from_file_location(
        "comfyui_gguf", folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    pack = importlib.util.module_from_spec(spec)
    sys.modules["comfyui_gguf"] = pack
    spec.loader.exec_module(pack)
    yield pack
    folder_paths.folder_names_and_paths.clear()
    folder_paths.folder_names_and_paths.update(names)


@pytest.fixture
def gguf(gguf_pack, tmp_path, monkeypatch):
    """The letters model in Q4_0, loaded by UnetLoaderGGUF."""
    import folder_paths

    from devkit.quantized import formats

    path = tmp_path / "letters-q4_0.gguf"
    formats.make(LETTERS, "gguf-q4_0", path)
    monkeypatch.setattr(folder_paths, "get_full_path", lambda kind, name: str(path))
    return gguf_pack.NODE_CLASS_MAPPINGS["UnetLoaderGGUF"]().load_unet(path.name)[0]


def test_gguf(comfy, tiny, calibrate, gguf, monkeypatch):
    """The real loader and its layers: at a batch of 3, at cfg 1, with a LoRA, and partly loaded."""
    full = comfy.sd.load_diffusion_model(str(LETTERS))
    shape = (3, 16, 16, 16)
    width = network(full).context_embedder.in_features
    pooled = torch.randn(1, network(full).y_embedder.mlp[0].in_features, generator=torch.Generator().manual_seed(1))
    context = torch.randn(1, 10, width, generator=torch.Generator().manual_seed(0))
    positive, negative = ([[sign * context, {"pooled_output": sign * pooled}]] for sign in (1.0, -1.0))
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(2))

    def sample(model, cfg=3.0):
        return comfy.sample.sample(model, noise, 2, cfg, "euler", "simple", positive, negative, torch.zeros(shape),
                                   disable_pbar=True, seed=0)  # fmt: skip

    given = {"full_model": full, "quantized_model": gguf, "positive": positive, "negative": negative, "steps": 2}
    stats = calibrate(**given, latent={"samples": torch.zeros(shape)}, correction="drift and moments", held_out=1)[0]
    assert "GGUF Q4_0" in stats.provenance.quantization
    names = [place.name for place in stats.layers.places]
    assert any("attn.proj" in name for name in names) and any("mlp" in name for name in names), names
    assert ("layers", 1.0) in stats.trial.candidates and stats.trial.seen.pictures == 3
    assert_it_corrects(sample, gguf, stats)
    assert_it_corrects(sample, gguf, stats, "layers and moments")
    assert_it_corrects(lambda model: sample(model, 1.0), gguf, stats)
    with_lora = lora(gguf, stats)
    whole = assert_it_corrects(sample, with_lora, stats)
    own = of_run(sample, corrected(with_lora, stats))
    with half_loaded(monkeypatch, comfy) as loaded:
        found = sample(corrected(with_lora, stats))
        assert type(loaded[-1]).__name__ == "GGUFModelPatcher"
        assert_equal_but_for_rounding(found, whole, own)


# Other modules.


class Fused(nn.Module):
    """An MLP as one module, as loaders with kernels of their own have it: its layers have other names."""

    def __init__(self, mlp):
        super().__init__()
        self.first, self.second, self.act = mlp.fc1, mlp.fc2, mlp.act

    def forward(self, x):
        return self.second(self.act(self.first(x)))


class Closed(nn.Module):
    """A network none of whose parts can be reached by name."""

    def __init__(self, inner):
        super().__init__()
        self.__dict__["inner"] = inner

    def __getattr__(self, name):
        return getattr(self.__dict__["inner"], name)

    def forward(self, *args, **kwargs):
        return self.__dict__["inner"](*args, **kwargs)


def rebuilt(twin, change):
    """A quantized model of its own whose network was changed."""
    from comfy.model_patcher import ModelPatcher

    loaded = twin("sd3")
    model = ModelPatcher(copy.deepcopy(loaded.model), loaded.load_device, loaded.offload_device)
    change(model.model)
    return model


def test_blocks_are_corrected_where_layers_differ(tiny, twin, calibrate, caplog):
    def fuse(model):
        for block in model.diffusion_model.joint_blocks:
            block.x_block.mlp = Fused(block.x_block.mlp)

    caplog.set_level("INFO")
    quantized = rebuilt(twin, fuse)
    stats = calibrate(quantized_model=quantized, correction="drift and moments")[0]
    assert "Layer correction acts on blocks' outputs: there is no joint_blocks.0.x_block.mlp.fc" in caplog.text
    assert {place.name for place in stats.layers.places} <= {name for name, _ in network(quantized).named_modules()}
    assert all(place.name.rpartition(".")[0] == "joint_blocks" for place in stats.layers.places)
    assert_it_corrects(lambda model: tiny.sample(model, "sd3"), quantized, stats)


def test_a_network_without_common_places_is_said_and_calibrated_without(tiny, twin, calibrate, caplog):
    def close(model):
        model.diffusion_model = Closed(model.diffusion_model)

    caplog.set_level("INFO")
    stats = calibrate(quantized_model=rebuilt(twin, close), correction="drift and moments", held_out=1)[0]
    assert stats.layers is None and all("layers" not in name for name, _ in stats.trial.candidates)
    assert "without layer correction: " in caplog.text and "in common" in caplog.text
