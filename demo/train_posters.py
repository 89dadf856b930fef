"""Train the demo's poster model: the flow model on canvases of several sizes, up to latents of 64 x 64.

    .dev/venv/bin/python demo/train_posters.py --comfyui .dev/comfyui/0.3.75

It starts from the flow model's weights and learns posters (posters.py) of 2 x 2, 2 x 4 and 4 x 4 cells in turn, as many
positions in each batch. The positions' table grows to 32 x 32 patches and is learned too: it starts as the flow model's
own, repeated for each cell, plus the usual waves over the whole canvas, so that a letter knows its cell from the others.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
import sys
import time
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parent))
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

    weights = {name: value.float() for name, value in load_file(flow).items()}
    old = weights.pop("pos_embed").view(train.POSITIONS, train.POSITIONS, -1)
    first = (train.POSITIONS - CELL) // 2  # where the flow model's canvas lies in its table
    cell = old[first : first + CELL, first : first + CELL]
    times = POSITIONS // CELL
    waves = torch.from_numpy(get_2d_sincos_pos_embed(cell.shape[-1], POSITIONS)).float()
    weights["pos_embed"] = (cell.repeat(times, times, 1).flatten(0, 1) + WAVES * waves)[None]
    network.load_state_dict(weights)


def fit(args: argparse.Namespace, network: nn.Module) -> tuple[dict[str, Tensor], float]:
    """The averaged weights and the last 200 steps' mean loss."""
    glyphs, _ = letters.glyphs(args.glyphs, args.seed)
    generator = torch.Generator().manual_seed(args.seed)
    network.pos_embed.requires_grad_(True)  # a buffer in ComfyUI, which never trains
    optimizer = train.make_optimizer(network, args.rate)
    optimizer.add_param_group({"params": [network.pos_embed], "weight_decay": 0.0})
    average = {k: v.detach().clone() for k, v in network.state_dict().items()}
    start, losses = time.monotonic(), []
    for step in range(args.iterations):
        for group in optimizer.param_groups:
            group["lr"] = train.learning_rate(step / args.iterations, step, args.rate)
        rows, columns = LAYOUTS[step % len(LAYOUTS)]
        labels = torch.randint(len(conditioning.CLASSES), (CELLS // (rows * columns),), generator=generator)
        masks = posters.masks(glyphs, labels, rows, columns, generator)
        clean = latent.encode(letters.paint(masks, generator))
        loss = train.batch_loss(network, clean, labels, generator)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_([*network.parameters(), network.pos_embed], 1.0)
        optimizer.step()
        losses = [*losses[-199:], loss.item()]
        train.update_average(average, network, step)
        if step % 20 == 0 or step == args.iterations - 1:
            mean = sum(losses) / len(losses)
            print(f"step {step:6d}  loss {mean:.4f}  {time.monotonic() - start:.0f} s", flush=True)
    return average, sum(losses) / len(losses)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--comfyui", type=Path, required=True, help="a ComfyUI checkout")
    parser.add_argument("--iterations", type=int, default=1500)
    parser.add_argument("--glyphs", type=int, default=30000)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2, help="part of the recipe: sums are taken in another order")
    parser.add_argument("--flow", type=Path, default=train.OUTPUT, help="the flow model, whose weights it starts from")
    parser.add_argument("--output", type=Path, default=OUTPUT)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)
    network = train.build_network(args.comfyui, POSITIONS)
    start_from(network, args.flow)
    start = time.monotonic()
    weights, loss = fit(args, network)
    record = {
        "classes": conditioning.CLASSES,
        "layouts": LAYOUTS,
        "cells": CELLS,
        "glyphs": args.glyphs,
        "iterations": args.iterations,
        "peak_rate": args.rate,
        "flow_sha256": hashlib.sha256(args.flow.read_bytes()).hexdigest(),
        "seed": args.seed,
        "seconds": round(time.monotonic() - start),
        "final_loss": round(loss, 4),
        "torch": torch.__version__,
        "threads": args.threads,
        "machine": platform.machine(),
    }
    half = {name: value.half().contiguous() for name, value in weights.items()}
    save_file(half, args.output, metadata={"gimbal_demo": json.dumps(record)})
    print(f"{args.output} ({args.output.stat().st_size / 2**20:.1f} MB) {json.dumps(record)}")


if __name__ == "__main__":
    main()
