"""Train the demo's poster model: the flow model on canvases of several sizes, up to latents of 64 x 64.

    .dev/venv/bin/python demo/train_posters.py --comfyui .dev/comfyui/0.3.75

It starts from the flow model's weights and learns posters (posters.py) of 2 x 2, 2 x 4, 4 x 2 and 4 x 4 cells in turn, as
many positions in each batch. The positions' table grows to 32 x 32 patches and is learned too: it starts as the flow model's
own, repeated for each cell, plus the usual waves over the whole canvas, so that a letter knows its cell from the others.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parent))
import fitting
import letters
import posters
import train
from gimbal_demo import conditioning, latent

OUTPUT = train.OUTPUT.with_name("gimbal_posters_fp16.safetensors")
POSITIONS = 32  # patches a side that have a position: 4 cells
CELL = letters.SIZE // latent.BLOCK // 2  # patches a side of one letter
LAYOUTS = ((4, 4), (2, 2), (2, 4), (4, 4), (2, 2), (4, 2))  # rows and columns, in turn
CELLS = 96  # in a batch, whatever the layout
WAVES = 0.3  # of the table over the whole canvas, at the start


def start_from(network: nn.Module, flow: Path) -> None:
    """The flow model's weights, and its table of positions repeated for each cell."""
    from comfy.ldm.modules.diffusionmodules.mmdit import get_2d_sincos_pos_embed

    weights = fitting.load_weights(flow)
    old = weights.pop("pos_embed").view(train.POSITIONS, train.POSITIONS, -1)
    first = (train.POSITIONS - CELL) // 2  # where the flow model's canvas lies in its table
    cell = old[first : first + CELL, first : first + CELL]
    times = POSITIONS // CELL
    waves = torch.from_numpy(get_2d_sincos_pos_embed(cell.shape[-1], POSITIONS)).float()
    weights["pos_embed"] = (cell.repeat(times, times, 1).flatten(0, 1) + WAVES * waves)[None]
    network.load_state_dict(weights)


def main() -> None:
    parser = fitting.argument_parser(__doc__.splitlines()[0], OUTPUT, iterations=1500, rate=1e-3, seed=3, threads=2)
    parser.add_argument("--flow", type=Path, default=train.OUTPUT, help="the flow model, whose weights it starts from")
    args = parser.parse_args()
    fitting.prepare(args)
    network = train.build_network(args.comfyui, POSITIONS)
    start_from(network, args.flow)
    network.pos_embed.requires_grad_(True)  # a buffer in ComfyUI, which never trains
    glyphs, _ = letters.glyphs(args.glyphs, args.seed)
    generator = torch.Generator().manual_seed(args.seed)

    def loss_of(step: int) -> Tensor:
        rows, columns = LAYOUTS[step % len(LAYOUTS)]
        labels = torch.randint(len(conditioning.CLASSES), (CELLS // (rows * columns),), generator=generator)
        masks = posters.masks(glyphs, labels, rows, columns, generator)
        clean = latent.encode(letters.paint(masks, generator))
        return train.batch_loss(network, clean, labels, generator)

    recipe = {"layouts": LAYOUTS, "cells": CELLS, "flow_sha256": fitting.sha256(args.flow)}
    fitting.fit(args, network, loss_of, recipe, [network.pos_embed])


if __name__ == "__main__":
    main()
