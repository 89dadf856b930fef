"""The number formats that the demo's models are rounded to."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gimbal.core import fakequant

Q4_0_BLOCK = 32


@dataclass(frozen=True)
class NumberFormat:
    """name: as in tables. quantize: what makes a quantized copy of a network. exact: fine enough that bfloat16 products
    would blur it, so that it is run, and compared, in float32."""

    name: str
    quantize: Callable[[nn.Module], nn.Module]
    exact: bool = False


class RoundedLinear(nn.Module):
    def __init__(self, linear: nn.Module, weight_bits: int, activation_bits: int, rank: int):
        super().__init__()
        self.weight = fakequant.split(linear.weight.detach(), weight_bits, rank=rank)
        self.bias, self.activation_bits = linear.bias, activation_bits

    def forward(self, x: Tensor) -> Tensor:
        return fakequant.linear(x, self.weight, self.bias, self.activation_bits)


def simulated(weight_bits: int, activation_bits: int, rank: int = 0) -> Callable[[nn.Module], nn.Module]:
    """As the node Simulate Quantization does it at its defaults: the linear layers of the blocks, groups of 64."""

    def quantize(network: nn.Module) -> nn.Module:
        quantized = deepcopy(network)
        for name, layer in _block_layers(quantized):
            if not rank or min(layer.weight.shape) > rank:
                quantized.set_submodule(name, RoundedLinear(layer, weight_bits, activation_bits, rank))
        return quantized

    return quantize


def as_q4_0(network: nn.Module) -> nn.Module:
    """Weights of the blocks' linear layers as GGUF's Q4_0 holds them; activations as they are."""
    quantized = deepcopy(network)
    for _, layer in _block_layers(quantized):
        layer.weight.copy_(q4_0(layer.weight))
    return quantized


def q4_0(weight: Tensor) -> Tensor:
    """A weight (out, in) through GGUF's Q4_0 and back: blocks of 32 with one fp16 scale, 16 levels from -8 to 7, the
    largest magnitude being -8 (ggml, quantize_row_q4_0_ref). `in` must be a multiple of 32."""
    blocks = weight.float().reshape(-1, Q4_0_BLOCK)
    largest = blocks.gather(1, blocks.abs().argmax(1, keepdim=True))
    scale = largest / -8
    inverse = torch.where(scale == 0, 0.0, 1 / scale)
    levels = (blocks * inverse + 8.5).trunc().clamp(0, 15) - 8
    return (levels * scale.half().float()).reshape(weight.shape).to(weight.dtype)


def as_fp8(network: nn.Module) -> nn.Module:
    """All weights in float8_e4m3fn, as ComfyUI's loader makes them under that weight_dtype; computed as before."""
    quantized = deepcopy(network)
    for value in quantized.state_dict().values():
        value.copy_(value.to(torch.float8_e4m3fn))
    return quantized


def _block_layers(network: nn.Module) -> list[tuple[str, nn.Module]]:
    from gimbal.host.simulating.linear_layers import linear_layers  # ComfyUI is on the path once the network is built

    return [(layer.name, layer.module) for layer in linear_layers(network) if not layer.role]


RANK = 16
HEAVY = (
    NumberFormat("W3A4", simulated(3, 4)),
    NumberFormat(f"W3A4, rank {RANK}", simulated(3, 4, RANK)),
    NumberFormat("W4A4", simulated(4, 4)),
)
MILD = (
    NumberFormat("W4A8", simulated(4, 8)),
    NumberFormat("W8A8", simulated(8, 8), exact=True),
    NumberFormat("GGUF Q4_0", as_q4_0),
    NumberFormat("fp8 e4m3", as_fp8),
)
