"""Layers that round their activations, and the switch by which each can be run without that.

ComfyUI's mixed-precision layers (fp8 with a scale for inputs, nvfp4, mxfp8, int8, W4A4, W4A8) keep `_full_precision_mm`:
while it is set, the weight is unpacked and the product made in the compute dtype. Layers of Simulate Quantization have a
switch of their own. Others have none: GGUF's and scaled fp8's layers round no activations, the fast fp8 products of --fast
and nunchaku's kernels know no other way.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import nn

from .simulating.fake_linear import FakeQuantized

MIXED = "_full_precision_mm"


@dataclass(frozen=True, eq=False)
class Switch:
    """One layer. name: of its module within the network. holder, attribute: what is True while activations are not rounded."""

    name: str
    module: nn.Module
    holder: Any
    attribute: str

    @property
    def simulated(self) -> bool:
        """Whether it is a layer of Simulate Quantization."""
        return self.attribute != MIXED

    def rounds(self) -> bool:
        """Whether the layer, as it stands, rounds its activations."""
        if getattr(self.holder, self.attribute):
            return False
        return self.simulated or _mixed_rounds(self.module)


def switches(network: nn.Module) -> list[Switch]:
    """Of all layers that have one, in the order of the network's definition."""
    found = []
    for name, module in network.named_modules():
        forward = module.__dict__.get("forward")  # an object patch, while the model is loaded
        if isinstance(forward, FakeQuantized):
            if forward.quantization.activation_bits is not None:
                found.append(Switch(name, module, forward.switch, "unrounded"))
        elif getattr(module, "layout_type", None) is not None and isinstance(getattr(module, MIXED, None), bool):
            found.append(Switch(name, module, module, MIXED))
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
                setattr(each.holder, each.attribute, True)
        yield len(turned)
    finally:
        for each in turned:
            setattr(each.holder, each.attribute, False)


def _mixed_rounds(layer: Any) -> bool:
    """As the layer's own forward decides it: a LoRA that is applied on the way leaves nothing rounded, nor does offloading
    where there is no `quant_format`, in ComfyUI up to 0.3.75, which also wants a scale that comes with the file."""
    if getattr(layer, "weight_function", ()) or getattr(layer, "bias_function", ()):
        return False
    if getattr(layer, "quant_format", None) is None:
        return not layer.comfy_cast_weights and getattr(layer, "input_scale", None) is not None
    return not getattr(layer, "comfy_force_cast_weights", False)
