"""Where an attention call's tokens lie: patch sizes, token grids, and the queries, keys and masks of chosen tokens."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def patch_size(network: nn.Module, dims: int) -> tuple[int, ...] | None:
    """Latent positions a token covers, along each dimension; None for a UNet."""
    if hasattr(network, "input_blocks"):
        return None
    patch = getattr(network, "patch_size", None)
    sides = [patch] * 2 if isinstance(patch, int) else list(patch or ())
    return (1,) * (dims - len(sides)) + tuple(sides[-dims:])


def token_counts(size: torch.Size, patch: tuple[int, ...] | None) -> tuple[int, ...]:
    """The grid of tokens; one frame is no dimension of its own where the network has none for it."""
    return tuple(size) if patch is None else tuple(-(-n // p) for n, p in zip(size, patch[-len(size) :], strict=True))


def padded(tokens: int, multiple: int | None) -> int:
    return -(-tokens // multiple) * multiple if multiple else tokens


def select_tokens(x: Tensor, index: Tensor, given: dict) -> Tensor:
    """Some tokens of (B, N, heads * dim), or of (B, heads, N, dim) where given says so, as (B, n, heads * dim)."""
    if given.get("skip_reshape", False):
        return x.index_select(2, index).transpose(1, 2).flatten(2)
    return x.index_select(1, index)


def select_mask(mask: Tensor | None, cond: slice, rows: Tensor, keys: Tensor, q: Tensor, k: Tensor) -> Tensor | None:
    """The mask of the chosen tokens with four dimensions, from the forms that ComfyUI's attention takes."""
    if mask is None:
        return None
    if mask.ndim < 4:
        mask = mask[None, None] if mask.ndim == 2 else mask.unsqueeze(1)
    mask = mask[cond] if mask.shape[0] == q.shape[0] else mask
    mask = mask.index_select(2, rows) if mask.shape[2] == q.shape[-2] else mask
    return mask.index_select(3, keys) if mask.shape[3] == k.shape[-2] else mask
