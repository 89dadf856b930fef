"""Tiles and their confidence: the inputs and the step that AQClip and Watch Confidence have in common."""

from __future__ import annotations

import torch
from comfy_api.latest import io
from torch import Tensor

from ..core.confidence import gradient_confidence, tile_confidence
from ..host.sampling.stages import CallContext

SOURCES = ("gradient", "attention")


def source() -> io.Input:
    return io.Combo.Input(
        "confidence",
        options=list(SOURCES),
        default="gradient",
        tooltip="Where the model counts as certain. gradient: where the predicted picture has structure; works everywhere. "
        "attention: where the network's own attention is peaked, read from its middle layer without changing anything.",
    )


def tiles() -> list[io.Input]:
    return [
        io.Int.Input(
            "tile",
            default=32,
            min=2,
            max=512,
            tooltip="Side of a tile in latent positions (8 or 16 pixels each). Larger than the latent: one tile.",
        ),
        io.Int.Input(
            "stride",
            default=16,
            min=1,
            max=512,
            tooltip="Distance between tiles. Half a tile blends neighbours without seams, and is used where this is above 'tile'.",
        ),
    ]


def stride_within(tile: int, stride: int) -> int:
    """The stride, or half a tile where a larger one would leave positions out: who lowers 'tile' need not think of it."""
    return stride if stride <= tile else tile // 2


def certainty(x: Tensor, tile: int, stride: int, call: CallContext) -> Tensor:
    """Confidence of each tile of a prediction x, (B, rows, columns) or (B, F, rows, columns): attention's where it was read."""
    tokens = call.attention
    if tokens is None:
        tiled = gradient_confidence(x, tile, stride)
        call.record_maps(certainty=tiled)
        return tiled
    if x.ndim == 5 and tokens.shape[1] != x.shape[2]:  # networks that join frames into one token
        frames = torch.arange(x.shape[2], device=tokens.device) * tokens.shape[1] // x.shape[2]
        tokens = tokens.index_select(1, frames)
    tiled = tile_confidence(tokens, (x.shape[-2], x.shape[-1]), tile, stride)
    call.record_maps(certainty=tiled, tokens=tokens)
    return tiled


def not_a_picture(denoised: Tensor) -> str:
    return (
        ""
        if denoised.ndim in (4, 5)
        else f"It needs an image or video latent, not one of shape {tuple(denoised.shape)}."
    )
