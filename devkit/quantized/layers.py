"""Which weights of a diffusion model are quantized."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

# In a numbered block of the network: joint_blocks.0., single_blocks.3., input_blocks.4.1.transformer_blocks.0., layers.7.
BLOCK = re.compile(r"(^|\.)\w*(blocks|layers)\.\d+\.")
# Linear layers of a block that published files leave as they are: few values, and the whole block hangs on them.
KEPT = ("adaLN", "modulation", "_mod.", ".mod.", "emb_layers", "norm")


def block_linears(weights: Mapping[str, Tensor], multiple: int = 1) -> list[str]:
    """Names of the blocks' linear weights whose rows can be cut into groups of `multiple` values."""
    return [
        name
        for name in all_linears(weights)
        if BLOCK.search(name) and not any(part in name for part in KEPT) and weights[name].shape[1] % multiple == 0
    ]


def all_linears(weights: Mapping[str, Tensor]) -> list[str]:
    return [name for name, weight in weights.items() if name.endswith(".weight") and weight.ndim == 2]


def layer(name: str) -> str:
    """The layer that a weight belongs to."""
    return name.removesuffix(".weight")
