"""Layers that round their activations, and the switch by which each can be run without that.

ComfyUI's mixed-precision layers (fp8 with a scale for inputs, nvfp4, mxfp8, int8, W4A4, W4A8) keep `_full_precision_mm`:
while it is set, activations are not rounded before the product. Where the kernel rounds them itself (int8, W4A4, W4A8), the
weight must be unpacked as well, which ComfyUI does for any layer with a function on its weight, as for a LoRA. Layers of
Simulate Quantization have a switch of their own. Others have none: GGUF's and scaled fp8's layers round no activations, the
fast fp8 products of --fast and nunchaku's kernels know no other way.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import comfy.ops
from torch import Tensor, nn

from .simulating.fake_linear import FakeQuantized


@dataclass(frozen=True, eq=False)
class Switch:
    """One layer. name: of its module within the network."""

    name: str
    module: Any

    @property
    def is_on(self) -> bool:
        """Whether activations are not rounded at present."""
        raise NotImplementedError

    def rounds(self) -> bool:
        """Whether the layer, as it stands, rounds its activations."""
        return not self.is_on

    def turn(self, on: bool) -> None:
        raise NotImplementedError


class SimulatedSwitch(Switch):
    """Of a layer of Simulate Quantization."""

    @property
    def is_on(self) -> bool:
        return self.module.forward.switch.unrounded

    def turn(self, on: bool) -> None:
        self.module.forward.switch.unrounded = on


class MixedSwitch(Switch):
    """Of a mixed-precision layer of ComfyUI."""

    @property
    def is_on(self) -> bool:
        return self.module._full_precision_mm

    def rounds(self) -> bool:
        """As the layer's own forward decides it: a LoRA that is applied on the way leaves nothing rounded, nor does
        offloading where there is no `quant_format`, in ComfyUI up to 0.3.75, which also wants a scale from the file."""
        layer = self.module
        functions = [*getattr(layer, "weight_function", ()), *getattr(layer, "bias_function", ())]
        if self.is_on or functions:
            return False
        if getattr(layer, "quant_format", None) is None:
            return not layer.comfy_cast_weights and getattr(layer, "input_scale", None) is not None
        return not getattr(layer, "comfy_force_cast_weights", False)

    def turn(self, on: bool) -> None:
        layer = self.module
        layer._full_precision_mm = on
        if self._kernel_rounds():
            others = [each for each in layer.weight_function if each is not _unpacked]
            layer.weight_function = [*others, _unpacked] if on else others

    def _kernel_rounds(self) -> bool:
        algorithms = getattr(comfy.ops, "QUANT_ALGOS", {})
        return not algorithms.get(getattr(self.module, "quant_format", None), {}).get("quantize_input", True)


def switches(network: nn.Module) -> list[Switch]:
    """Of all layers that have one, in the order of the network's definition."""
    found: list[Switch] = []
    for name, module in network.named_modules():
        forward = module.__dict__.get("forward")  # an object patch, while the model is loaded
        if isinstance(forward, FakeQuantized):
            if forward.quantization.activation_bits is not None:
                found.append(SimulatedSwitch(name, module))
        elif getattr(module, "layout_type", None) and isinstance(getattr(module, "_full_precision_mm", None), bool):
            found.append(MixedSwitch(name, module))
    return found


@contextmanager
def unrounded(chosen: Sequence[Switch]) -> Iterator[int]:
    """While it is entered, these layers see unrounded activations; all are back as they were however it is left.

    Yields:
        How many it changes: those that round.
    """
    turned: list[Switch] = []
    try:
        for each in chosen:
            if each.rounds():
                turned.append(each)
                each.turn(True)
        yield len(turned)
    finally:
        for each in turned:
            each.turn(False)


def _unpacked(weight: Tensor) -> Tensor:
    """A function on a weight that leaves it as it is."""
    return weight
