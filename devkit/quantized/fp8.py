"""Weights in 8-bit floating point (e4m3), in the four ways in which files hold them."""

from __future__ import annotations

import json
from collections.abc import Sequence

import torch
from torch import Tensor

from .layers import layer

FP8 = torch.float8_e4m3fn
Weights = dict[str, Tensor]


def plain(weights: Weights, chosen: Sequence[str]) -> tuple[Weights, dict[str, str]]:
    """Rounded without a scale."""
    return {**weights, **{name: weights[name].to(FP8) for name in chosen}}, {}


def scaled(weights: Weights, chosen: Sequence[str]) -> tuple[Weights, dict[str, str]]:
    """With a `scale_weight` beside each weight, and the marker `scaled_fp8`: any ComfyUI since 2024 reads it.

    The marker's two elements say that the matrices are multiplied in full precision.
    """
    made = dict(weights)
    for name in chosen:
        made[name], made[f"{layer(name)}.scale_weight"] = _scaled(weights[name])
    made["scaled_fp8"] = torch.zeros(2, dtype=FP8)
    return made, {}


def mixed(weights: Weights, chosen: Sequence[str]) -> tuple[Weights, dict[str, str]]:
    """With a `weight_scale` beside each weight, and the list of layers in the file's header."""
    made = _with_scales(weights, chosen)
    layers = {layer(name): {"format": "float8_e4m3fn"} for name in chosen}
    return made, {"_quantization_metadata": json.dumps({"format_version": "1.0", "layers": layers})}


def tagged(weights: Weights, chosen: Sequence[str]) -> tuple[Weights, dict[str, str]]:
    """The same, but each layer says by a tensor `comfy_quant` of its own what it is."""
    made = _with_scales(weights, chosen)
    return {**made, **{f"{layer(name)}.comfy_quant": tag("float8_e4m3fn") for name in chosen}}, {}


def tag(algorithm: str, **options: int) -> Tensor:
    """The text by which ComfyUI knows how a layer is quantized, as a tensor of bytes."""
    return torch.tensor(list(json.dumps({"format": algorithm, **options}).encode()), dtype=torch.uint8)


def _with_scales(weights: Weights, chosen: Sequence[str]) -> Weights:
    made = dict(weights)
    for name in chosen:
        made[name], made[f"{layer(name)}.weight_scale"] = _scaled(weights[name])
    return made


def _scaled(weight: Tensor) -> tuple[Tensor, Tensor]:
    """(rounded, scale ()), so that the largest value of the layer is the largest that fp8 has."""
    scale = weight.abs().max().float().clamp(min=1e-12) / torch.finfo(FP8).max
    return (weight.float() / scale).to(FP8), scale
