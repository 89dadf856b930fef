"""The formats of ComfyUI's own kernel library, written by that library. Needs comfy-kitchen, which newer ComfyUI requires."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from ..paths import Stop
from .fp8 import Weights, tag
from .layers import layer

ROTATED = {"convrot_groupsize": 64}  # neighbouring inputs that a Hadamard matrix mixes before rounding
# Name in ComfyUI's list of algorithms -> layout in comfy-kitchen, its options, and those that a layer states.
ALGORITHMS: dict[str, tuple[str, dict, dict[str, int]]] = {
    "nvfp4": ("TensorCoreNVFP4Layout", {"scale": "recalculate"}, {}),
    "mxfp8": ("TensorCoreMXFP8Layout", {}, {}),
    "int8_tensorwise": ("TensorWiseINT8Layout", {}, {}),
    "convrot_w4a4": ("TensorCoreConvRotW4A4Layout", ROTATED, ROTATED),
    "asym_w4a8_int8": ("AsymW4A8Int8Layout", ROTATED, ROTATED),
}


def write(algorithm: str, weights: Weights, chosen: Sequence[str]) -> tuple[Weights, dict[str, str]]:
    """Each layer with its scales and a tensor `comfy_quant` that names the algorithm. Stop without comfy-kitchen."""
    try:
        from comfy_kitchen.tensor import QuantizedTensor
    except ImportError as error:
        raise Stop(
            f"{algorithm} is written by the package comfy-kitchen, which is not installed here ({error}); "
            "run `.dev/venv/bin/python -m pip install comfy-kitchen`, then the command again."
        ) from error
    layout, options, stated = ALGORITHMS[algorithm]
    made = dict(weights)
    for name in chosen:
        quantized = QuantizedTensor.from_float(weights[name].float(), layout, **options)
        made |= quantized.state_dict(name)
        made[f"{layer(name)}.comfy_quant"] = tag(algorithm, **stated)
    return made, {}


nvfp4, mxfp8, int8, w4a4, w4a8 = (partial(write, algorithm) for algorithm in ALGORITHMS)
