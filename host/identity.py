"""Where a calibration comes from: the models' files and weights, what their quantization looks like, the machine."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

import comfy.ldm.modules.attention
import comfy.model_management
import comfyui_version
import torch
from comfy.model_patcher import ModelPatcher
from comfy.sd import CLIP
from torch import Tensor

from ..calibration import fingerprint
from ..calibration.text import printable
from .messages import NodeId

FILES = (".safetensors", ".sft", ".gguf", ".ckpt", ".pt", ".pth", ".bin")


def digest(*values: object) -> str:
    return fingerprint.digest(*values, opaque=(ModelPatcher, CLIP, NodeId))


def weights_digest(model: ModelPatcher) -> str:
    """Of the network's weights as their file has them, and of the LoRAs on them."""
    weights = network_weights(model)
    for name, kept in model.backup.items():  # while a model with a LoRA is loaded its weights are the patched ones
        short = name.removeprefix("diffusion_model.")
        if short in weights:
            weights[short] = kept.weight
    found = fingerprint.weights_digest(weights)
    return digest(found, model.patches) if model.patches else found


def network_weights(model: ModelPatcher) -> dict[str, Tensor]:
    """Not by state_dict, in which GGUF's loaders put stand-ins."""
    network = model.model.diffusion_model
    return {**dict(network.named_parameters()), **dict(network.named_buffers())}


def identity(model: ModelPatcher, weights: str) -> str:
    """Of all that decides what the model predicts: weights and what nodes have put on it."""
    sampling = model.get_model_object("model_sampling")
    state = dict(sampling.state_dict())
    return digest(
        weights,
        type(model.model),
        [type_.__name__ for type_ in type(sampling).__mro__],
        state,
        model.model_options,
        model.wrappers,
        model.object_patches,
        quantization(model),
    )


def quantization(model: ModelPatcher) -> str:
    """Which kinds of numbers the weights are, as shares: "float8_e4m3fn 97 % in 96 tensors, float32 3 % in 40"."""
    sizes: Counter[str] = Counter()
    tensors: Counter[str] = Counter()
    for weight in network_weights(model).values():
        kind = _kind(weight)
        sizes[kind] += sum(values.numel() * values.element_size() for _, values in fingerprint.stored(weight))
        tensors[kind] += 1
    total = sum(sizes.values()) or 1
    parts = [f"{kind} {100 * size / total:.3g} % in {tensors[kind]} tensors" for kind, size in sizes.most_common()]
    computed = getattr(model.model, "manual_cast_dtype", None) or model.model.get_dtype()
    simulated = {str(patch.quantization) for patch in model.object_patches.values() if hasattr(patch, "quantization")}
    ways = [
        f"computed in {str(computed).removeprefix('torch.')}",
        *(f"simulated {each}" for each in sorted(simulated)),
    ]
    return "; ".join([", ".join(parts), *ways])


def simulated_quantizations(model: ModelPatcher) -> list[str]:
    """What Simulate Quantization does to it, if anything."""
    patches = model.object_patches.values()
    return sorted({str(patch.quantization) for patch in patches if hasattr(patch, "quantization")})


def _kind(weight: Tensor) -> str:
    gguf = getattr(weight, "tensor_type", None)
    if gguf is not None:
        return f"GGUF {getattr(gguf, 'name', gguf)}"
    layout = getattr(weight, "_layout_type", None) or getattr(weight, "_layout_cls", None)
    if layout is not None:
        return getattr(layout, "__name__", str(layout))
    if hasattr(weight, "__tensor_flatten__"):
        return type(weight).__name__
    return str(weight.dtype).removeprefix("torch.")


def model_name(model: ModelPatcher, prompt: dict | None, node_id: str | None, name: str) -> str:
    """The model's file, with those of LoRAs on it, read from the queued graph; else the model's kind."""
    files = _files(prompt or {}, (prompt or {}).get(str(node_id), {}).get("inputs", {}).get(name))
    loader = getattr(model, "cached_patcher_init", None)  # newer ComfyUI: how to load this model again
    if not files and loader:
        files = [Path(part).name for part in _texts(loader) if part.lower().endswith(FILES)]
    return printable(" + ".join(dict.fromkeys(files))) or type(model.model.model_config).__name__


def _files(prompt: dict, link: Any) -> list[str]:
    """Files that the nodes upstream of a model link name, the loader's first."""
    found: list[str] = []
    seen: set[str] = set()
    while isinstance(link, list) and link and str(link[0]) in prompt and str(link[0]) not in seen:
        seen.add(str(link[0]))
        inputs = prompt[str(link[0])].get("inputs", {})
        found = [Path(part).name for part in _texts(list(inputs.values())) if part.lower().endswith(FILES)] + found
        links = {name: value for name, value in inputs.items() if isinstance(value, list)}
        link = links.get("model", links.get("unet"))
    return found


def _texts(value: object) -> list[str]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    return [text for each in value for text in _texts(each)] if isinstance(value, list | tuple) else []


def environment() -> dict[str, str]:
    """The fields of a Provenance that tell of the machine."""
    device = comfy.model_management.get_torch_device()
    return {
        "torch": torch.__version__,
        "comfyui": comfyui_version.__version__,
        "device": comfy.model_management.get_torch_device_name(device),
        "attention": comfy.ldm.modules.attention.optimized_attention.__name__,
    }


def version() -> str:
    text = (Path(__file__).parent.parent / "pyproject.toml").read_text(encoding="utf-8")
    found = re.search(r'^version = "([^"]+)"', text, re.MULTILINE)
    return found[1] if found else ""
