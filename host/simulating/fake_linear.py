"""A linear layer's forward that computes as a quantized layer would, put on a model as an object patch.

The layer's own forward still runs, so that whatever ComfyUI does there to come by the weight (casts, LoRAs applied on
the way, partial loading) stays ComfyUI's business, on every version. Only the matrix product in it is exchanged.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from comfy.model_patcher import ModelPatcher
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ...core.fakequant import LowRank, linear, low_rank, split


@dataclass(frozen=True)
class Quantization:
    weight_bits: int
    activation_bits: int | None  # None: full precision
    group: int | None  # None: one scale per output channel
    rank: int

    def __str__(self) -> str:
        groups = f"groups of {self.group}" if self.group else "one scale per output channel"
        branch = f"low-rank branch of rank {self.rank}" if self.rank else "no low-rank branch"
        return f"W{self.weight_bits}A{self.activation_bits or 16}, {groups}, {branch}"


class _Kept:
    """The low-rank branch of the weight seen last, as finding it is slow.

    In slots, where digests of what a model carries (host/identity.py) do not look: it follows from the weight.
    """

    __slots__ = ("branch", "key")

    def __init__(self) -> None:
        self.key: tuple | None = None
        self.branch: LowRank | None = None

    def of(self, weight: Tensor, rank: int) -> LowRank:
        # The weight is what ComfyUI hands over: LoRAs come and go in it, with their strengths, also between two steps.
        sums = torch.stack((weight.sum(dtype=torch.float32), torch.linalg.vector_norm(weight, dtype=torch.float32)))
        key = (weight.device, weight.dtype, *sums.tolist())
        branch = self.branch
        if key != self.key or branch is None:
            branch = low_rank(weight, rank)
            self.branch, self.key = branch, key
        return branch


class _Switch:
    """Whether a layer sees unrounded activations at present. In slots, as `_Kept` is: it is no part of the model."""

    __slots__ = ("unrounded",)

    def __init__(self) -> None:
        self.unrounded = False


class FakeQuantized:
    """In place of `forward` of a linear layer. While `switch.unrounded` is True, activations stay in full precision."""

    def __init__(self, name: str, forward: Callable[..., Tensor], module: nn.Module, quantization: Quantization):
        self.name, self.forward, self.quantization = name, forward, quantization
        self.shape: tuple[object, object] = (module.out_features, module.in_features)
        self._kept = _Kept()
        self.switch = _Switch()

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        exchange = _QuantizedLinearMode(self)
        with exchange:
            result = self.forward(*args, **kwargs)
        if not exchange.done:
            raise ValueError(
                f"Simulate Quantization: the layer {self.name} does not compute as torch's linear layers do; another node "
                "or a loader with kernels of its own must have changed it. Connect the model from before that node."
            )
        return result

    def product(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        wanted = self.quantization
        if type(weight) not in (Tensor, nn.Parameter):
            raise ValueError(
                f"Simulate Quantization: the layer {self.name} computes with quantized numbers ({type(weight).__name__}) "
                "already; use a full-precision model, and start ComfyUI without fast fp8."
            )
        branch = self._kept.of(weight, wanted.rank) if wanted.rank else None
        return linear(
            x,
            split(weight, wanted.weight_bits, wanted.group, wanted.rank, branch),
            bias,
            None if self.switch.unrounded else wanted.activation_bits,
        )


def carried_quantization(model: ModelPatcher) -> Quantization | None:
    """The quantization that a model patcher simulates, if any."""
    layers = (patch for patch in model.object_patches.values() if isinstance(patch, FakeQuantized))
    return next((layer.quantization for layer in layers), None)


class _QuantizedLinearMode(TorchFunctionMode):
    """While it is entered, products with a weight of the layer's shape are the quantized layer's."""

    def __init__(self, layer: FakeQuantized):
        super().__init__()
        self.layer, self.done = layer, False

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if func is F.linear:
            return self._linear(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))

    def _linear(self, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:  # as torch names them
        if tuple(weight.shape) != self.layer.shape:  # a LoRA's own product beside the layer's
            return F.linear(input, weight, bias)
        self.done = True
        return self.layer.product(input, weight, bias)
