"""The demo's autoencoder: a fixed 4x4 block cosine transform in opponent colours, 16 of its 48 coefficients kept.

It is what JPEG does with smaller blocks, so it needs no weights file: 10 lightness and 3 + 3 colour coefficients of
each 4x4 block become the 16 channels that the SD3 layout has. It keeps the demo's pictures to 32 dB.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F

BLOCK, CHANNELS = 4, 16
LUMA, CHROMA = 10, 3

# Standard deviation of each coefficient over 6,000 of the demo's pictures, in the order of `basis`.
# fmt: off
COEFFICIENT_STD = (2.887, 0.592, 0.516, 0.200, 0.249, 0.220, 0.115, 0.098, 0.130, 0.120,
                   1.670, 0.288, 0.249, 1.638, 0.283, 0.246)
# fmt: on


@lru_cache
def basis() -> Tensor:
    """Orthonormal analysis filters (CHANNELS, 3, BLOCK, BLOCK), scaled so that no channel drowns in the noise."""
    n = torch.arange(BLOCK, dtype=torch.float32)
    cosines = torch.cos(math.pi * (n[None] + 0.5) * n[:, None] / BLOCK)
    cosines = cosines / cosines.norm(dim=1, keepdim=True)
    # Zig-zag: coarse before fine, balanced before one-sided.
    order = sorted(range(BLOCK**2), key=lambda i: (sum(divmod(i, BLOCK)), abs(i // BLOCK - i % BLOCK), i))
    planes = [torch.outer(cosines[i // BLOCK], cosines[i % BLOCK]) for i in order]
    colours = torch.tensor([[1.0, 1.0, 1.0], [1.0, 0.0, -1.0], [1.0, -2.0, 1.0]])
    colours = colours / colours.norm(dim=1, keepdim=True)
    kept = [(0, i) for i in range(LUMA)] + [(c, i) for c in (1, 2) for i in range(CHROMA)]
    return torch.stack([colours[c][:, None, None] * planes[i] for c, i in kept])


@lru_cache
def _scale() -> Tensor:
    """(CHANNELS, 1, 1, 1). Part of the way to unit variance, so that coarse structure still settles first."""
    return 0.85 * torch.tensor(COEFFICIENT_STD).pow(-0.7).reshape(-1, 1, 1, 1)


def encode(pictures: Tensor) -> Tensor:
    """Pictures (N, 3, H, W) in [-1, 1] to latents (N, 16, H/4, W/4) as the network sees them."""
    return F.conv2d(pictures, basis() * _scale(), stride=BLOCK)


def decode(latents: Tensor) -> Tensor:
    """Latents (N, 16, h, w) as the network sees them to pictures (N, 3, 4h, 4w), clipped to [-1, 1]."""
    return F.conv_transpose2d(latents, basis() / _scale(), stride=BLOCK).clamp(-1, 1)
