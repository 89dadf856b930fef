"""The linear layers of a network, and which of them quantizers leave alone."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

# What a part of a layer's path gives away. In the order asked.
FINAL = re.compile(r"final|head$|last|norm_out|proj_out|linear_out|modF$")  # the first part only
MODULATION = re.compile(r"ada_?ln|modulation|(^|_)mod(_|\d|$)|^mod(c|x|cx)$|emb_layers|norm|^t_block|time_proj", re.I)
EMBEDDING = re.compile(
    r"embed|(^|_)emb(_|$)|^(x|y|t|img|txt|text|time|vector|guidance|byt5|vision|clip\w*|context)_in$"
    r"|distilled_guidance|caption_proj|label|pos_"
)
BLOCK = re.compile(r"block")


@dataclass(frozen=True)
class Layer:
    name: str  # within the network
    module: nn.Module
    role: str  # why quantizers leave it alone; empty for a block's own

    @property
    def weight(self) -> Tensor:
        return weight_of(self.module)

    @property
    def size(self) -> int:
        return self.weight.numel()


def weight_of(layer: nn.Module) -> Tensor:
    """A linear layer's weight, which is a tensor of some kind: `linear_layers` takes no other."""
    return cast(Tensor, layer.weight)


def linear_layers(network: nn.Module) -> Iterator[Layer]:
    for name, module in network.named_modules():
        if _is_linear(module):
            yield Layer(name, module, _role(network, name.split(".")))


def kind_of_quantization(module: nn.Module) -> str:
    """What a layer's weight is stored as, if that is no plain floating-point tensor; else empty."""
    weight = weight_of(module)
    gguf = getattr(weight, "tensor_type", None)
    if gguf is not None:
        return f"GGUF {getattr(gguf, 'name', gguf)}"
    if type(weight) not in (Tensor, nn.Parameter):
        layout = getattr(weight, "_layout_type", None) or getattr(weight, "_layout_cls", None)
        return str(getattr(layout, "__name__", layout) or type(weight).__name__)
    if not weight.is_floating_point():
        return str(weight.dtype).removeprefix("torch.")
    return "scaled fp8" if getattr(module, "scale_weight", None) is not None else ""


def describe(layers: list[Layer]) -> str:
    """One indented line for all layers whose names differ in the numbers of blocks alone."""
    counts = Counter(_pattern(layer.name) for layer in layers)
    return "\n".join(f"  {pattern}{f'  x {count}' if count > 1 else ''}" for pattern, count in counts.items())


def total_size(layers: list[Layer]) -> int:
    return sum(layer.size for layer in layers)


def stored_as(layers: list[Layer]) -> str:
    """The dtypes narrower than 16 bits among the layers' weights, in words."""
    narrow = {str(layer.weight.dtype) for layer in layers if layer.weight.element_size() < 2}
    return ", ".join(sorted(name.removeprefix("torch.") for name in narrow))


def _is_linear(module: Any) -> bool:
    """ComfyUI's mixed-precision layers are no torch.nn.Linear."""
    known = isinstance(module, nn.Linear) or (type(module).__name__ == "Linear" and hasattr(module, "in_features"))
    return known and isinstance(getattr(module, "weight", None), torch.Tensor)


def _role(network: nn.Module, path: list[str]) -> str:
    if FINAL.search(path[0]):
        return "final layer"
    if any(map(MODULATION.search, path)):
        return "modulation"
    if any(map(EMBEDDING.search, path)):
        return "embeddings"
    return "" if _in_a_block(network, path) else "outside the blocks"


def _in_a_block(network: nn.Module, path: list[str]) -> bool:
    module = network
    for part in path[:-1]:
        module = getattr(module, part)
        if isinstance(module, nn.ModuleList) or BLOCK.search(part):
            return True
    return False


def _pattern(name: str) -> str:
    *head, last = name.split(".")
    return ".".join([*("*" if part.isdigit() else part for part in head), last])
