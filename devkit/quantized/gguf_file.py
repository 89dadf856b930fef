"""GGUF files as ComfyUI's GGUF loaders read them. Needs the package gguf, which is among the pinned tools."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import gguf
import torch
from torch import Tensor

from ..paths import Stop
from .fp8 import Weights

GROUP = 32  # values that share a scale, in the three kinds written here
# A weight that only one family has -> what the loaders call that family.
ARCHITECTURES = {
    "joint_blocks.0.x_block.attn.qkv.weight": "sd3",
    "double_blocks.0.img_attn.proj.weight": "flux",
    "double_blocks.0.img_attn_proj.weight": "hyvid",
    "blocks.0.self_attn.norm_q.weight": "wan",
    "cap_embedder.1.weight": "lumina2",
    "transformer_blocks.0.attn.add_q_proj.weight": "qwen_image",
}
MOST_DIMENSIONS = 4  # that the format can name


def write(kind: str, weights: Weights, chosen: Sequence[str], path: Path) -> None:
    """`kind`: Q8_0, Q5_0 or Q4_0 for the chosen weights; vectors become float32, all else float16."""
    writer = gguf.GGUFWriter(str(path), architecture(weights))
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    for name, weight in weights.items():
        values = weight.float().numpy()
        if weight.ndim > MOST_DIMENSIONS:
            writer.add_array(f"comfy.gguf.orig_shape.{name}", tuple(weight.shape))
            values = values.reshape(weight.shape[0], -1)
        numbers = _kind(kind if name in chosen else "F16", weight)
        writer.add_tensor(name, gguf.quants.quantize(values, numbers), raw_dtype=numbers)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def read(path: Path) -> Weights:
    """The weights of a file in float32, dequantized."""
    made = {}
    for tensor in gguf.GGUFReader(path).tensors:
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        made[tensor.name] = torch.from_numpy(values.reshape(tuple(reversed(tensor.shape.tolist()))).copy())
    return made


def architecture(weights: Weights) -> str:
    for name, found in ARCHITECTURES.items():
        if name in weights:
            return found
    raise Stop(
        "GGUF files name the model's family, and this one is not known here: "
        f"{', '.join(sorted(set(ARCHITECTURES.values())))} are; add it to devkit/quantized/gguf_file.py."
    )


def _kind(name: str, weight: Tensor) -> gguf.GGMLQuantizationType:
    return gguf.GGMLQuantizationType["F32" if weight.ndim <= 1 else name]
