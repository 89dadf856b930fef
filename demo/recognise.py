"""How many of the demo model's guided samples does a classifier of real pictures recognise?

    .dev/venv/bin/python demo/recognise.py --comfyui .dev/comfyui/0.3.75

Trains a small convolutional classifier on real pictures, states its accuracy on held-out ones, then that on samples.
The evidence benchmark judges by the same classifier.
"""

from __future__ import annotations

import argparse
import math
import sys
from itertools import pairwise
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parent))
import fitting
import letters
import posters
import train
from gimbal_demo import conditioning, latent

GLYPHS, STEPS, BATCH, RATE = 6000, 1500, 64, 2e-3


def build_classifier() -> nn.Sequential:
    """Untrained. Its last layer is the linear one: what comes before are the features."""
    widths = ((3, 24), (24, 48), (48, 96))
    stages = [layer for i, o in widths for layer in (nn.Conv2d(i, o, 3, 2, 1), nn.BatchNorm2d(o), nn.ReLU())]
    head = [nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(96 * 16, len(conditioning.CLASSES))]
    return nn.Sequential(*stages, *head)


def classifier() -> nn.Sequential:
    """Trained on pictures of seed 77, which neither the model's training nor the test pictures use."""
    torch.manual_seed(0)
    network = build_classifier()
    masks, labels = letters.glyphs(GLYPHS, 77)
    generator = torch.Generator().manual_seed(77)
    optimizer = torch.optim.AdamW(network.parameters(), RATE)
    for step in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = RATE * (1 - step / STEPS)
        chosen = torch.randint(GLYPHS, (BATCH,), generator=generator)
        loss = F.cross_entropy(network(letters.paint(masks[chosen], generator)), labels[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return network.eval().requires_grad_(False)


def load_network(comfyui: Path, model: Path = train.OUTPUT) -> nn.Module:
    """A demo model, in float32."""
    weights = fitting.load_weights(model)
    positions = math.isqrt(weights["pos_embed"].shape[1])
    network = train.build_network(comfyui, positions).eval().requires_grad_(False)
    network.load_state_dict(weights)
    return network


def schedule(steps: int) -> list[float]:
    """ComfyUI's SD3 schedule (shift 3): steps + 1 noise levels from 1 down to 0."""
    times = torch.linspace(1, 0, steps + 1)
    return (3 * times / (1 + 2 * times)).tolist()


def sample(
    network: nn.Module, labels: Tensor, cfg: float, steps: int, seed: int, layout: tuple[int, int] = (1, 1)
) -> Tensor:
    """Guided Euler steps: pictures (N, 3, 64 rows, 64 columns). layout: rows and columns of letters."""
    canvas = [letters.SIZE // latent.BLOCK * cells for cells in layout]
    x = torch.randn(len(labels), latent.CHANNELS, *canvas, generator=torch.Generator().manual_seed(seed))
    none = torch.full_like(labels, -1)
    context, pooled = conditioning.codes(torch.cat([labels, none]))
    for sigma, following in pairwise(schedule(steps)):
        level = torch.full((2 * len(labels),), sigma * 1000)
        cond, uncond = network(torch.cat([x, x]), level, context=context, y=pooled).chunk(2)
        x = x + (uncond + cfg * (cond - uncond)) * (following - sigma)
    return latent.decode(x)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--comfyui", type=Path, required=True)
    parser.add_argument("--model", type=Path, default=train.OUTPUT)
    parser.add_argument("--samples", type=int, default=200)
    parser.add_argument("--cfg", type=float, default=3.0)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--seed", type=int, default=3)
    parser.add_argument("--layout", type=int, nargs=2, default=(1, 1), help="of a poster: rows and columns of letters")
    parser.add_argument("--picture", type=Path, help="write the first samples there")
    args = parser.parse_args()
    network = load_network(args.comfyui, args.model)
    judge = classifier()
    with torch.inference_mode():
        pictures, truth = letters.pictures(1000, 991)
        print(f"real pictures: {(judge(pictures).argmax(1) == truth).float().mean():.1%} of 1000 recognised")
        labels = torch.arange(args.samples) % len(conditioning.CLASSES)
        pictures = sample(network, labels, args.cfg, args.steps, args.seed, tuple(args.layout))
        if args.picture:
            rows = torch.cat(list(pictures[:10]), -1)
            Image.fromarray(((rows.permute(1, 2, 0) + 1) * 127.5).round().byte().numpy()).save(args.picture)
        found = posters.cells(pictures, letters.SIZE)
        labels = labels.repeat_interleave(len(found) // len(labels))
        right = judge(found).argmax(1) == labels
        print(
            f"samples at cfg {args.cfg:g}, {args.steps} steps: {right.float().mean():.1%} of {len(right)} recognised"
        )
        for index, letter in enumerate(conditioning.CLASSES):
            print(f"  {letter} {right[labels == index].float().mean():.0%}")


if __name__ == "__main__":
    main()
