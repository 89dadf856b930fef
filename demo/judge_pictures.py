"""How many of the picture model's guided samples does a classifier of real pictures recognise?

    .dev/venv/bin/python demo/judge_pictures.py --comfyui .dev/comfyui/0.3.75 --model FILE [--picture sheet.png]

The prompts are held out: a thing on a ground that no training prompt names together. The classifier learns which thing a
real picture shows, through the same autoencoder as samples; the group is the one with most of the probability. It is made
anew each time (some minutes).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Collection
from itertools import pairwise
from pathlib import Path
from zlib import crc32

import torch
from PIL import Image
from safetensors import safe_open
from torch import Tensor, nn
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parent))
import recognise

import emoji_pictures
import fitting
import train_pictures
import words
from emoji_pictures import Things
from gimbal_demo import latent

STEPS, BATCH, RATE, SEED = 3000, 64, 3e-3, 77
PROMPTS = 40
COLUMNS = 8  # of a sheet
TOP = 5


def held_out_prompts(
    things: Things, count: int, skip: int = 0, groups: Collection[str] | None = None
) -> tuple[list[str], Tensor]:
    """Pairs of thing and ground that no training prompt names, groups in turn, each in the order of the pairs' hashes.

    Args:
        skip: so many of the order are left out before. groups: whose things are asked for; None: all.
    Returns:
        Prompts, and their things (count,).
    """
    of_group: dict[str, list[tuple[int, str, int]]] = {
        group: [] for group in sorted(set(things.groups) & set(groups or things.groups))
    }
    for thing, (names, group) in enumerate(zip(things.names, things.groups, strict=True)):
        if group not in of_group:
            continue
        for ground in emoji_pictures.GROUNDS:
            if emoji_pictures.held_out(names[0], ground):
                prompt = f"{names[0]} on {ground}"
                of_group[group].append((crc32(prompt.encode()), prompt, thing))
    queues = [sorted(pairs) for pairs in of_group.values()]
    turns = [queue[turn] for turn in range(max(map(len, queues))) for queue in queues if turn < len(queue)]
    if len(turns) < skip + count:
        raise ValueError(f"{skip + count} held-out prompts are asked for; there are {len(turns)}.")
    chosen = turns[skip : skip + count]
    return [prompt for _, prompt, _ in chosen], torch.tensor([thing for *_, thing in chosen])


def group_indices(things: Things) -> Tensor:
    """The group of each thing, an index into the sorted names of groups."""
    names = sorted(set(things.groups))
    return torch.tensor([names.index(group) for group in things.groups])


def build_classifier(count: int) -> nn.Sequential:
    """Pictures (N, 3, 64, 64) to logits of `count` things. Untrained."""
    widths = ((3, 32), (32, 64), (64, 128), (128, 192))
    stages = [layer for i, o in widths for layer in (nn.Conv2d(i, o, 3, 2, 1), nn.BatchNorm2d(o), nn.ReLU())]
    return nn.Sequential(*stages, nn.Flatten(), nn.Linear(192 * 16, count))


def real_pictures(things: Things, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Real pictures as samples look, through the autoencoder, and their things."""
    chosen = torch.randint(len(things.names), (count,), generator=generator)
    which = torch.randint(len(emoji_pictures.SETS), (count,), generator=generator)
    painted, _ = emoji_pictures.paint(things, which, chosen, generator)
    return latent.decode(latent.encode(painted)), chosen


def classifier(things: Things, steps: int = STEPS) -> nn.Sequential:
    """Trained on pictures of SEED, which neither the model's training nor the test pictures use."""
    torch.manual_seed(0)
    network = build_classifier(len(things.names))
    generator = torch.Generator().manual_seed(SEED)
    optimizer = torch.optim.AdamW(network.parameters(), RATE, weight_decay=0.02)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = RATE * min(1.0, (step + 1) / 100) * (1 - step / steps)
        pictures, chosen = real_pictures(things, BATCH, generator)
        loss = F.cross_entropy(network(pictures), chosen, label_smoothing=0.1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 250 == 0:
            print(f"classifier: step {step}, loss {loss.item():.3f}", flush=True)
    return network.eval().requires_grad_(False)


def recognised(network: nn.Module, things: Things, pictures: Tensor, asked: Tensor) -> tuple[Tensor, Tensor]:
    """Whether the group asked for has most of the probability, and whether the thing is among the TOP likeliest. (N,)."""
    logits = torch.cat([network(part) for part in pictures.split(100)])
    groups = group_indices(things)
    sums = torch.zeros(len(logits), int(groups.max()) + 1).index_add_(1, groups, logits.softmax(1))
    return sums.argmax(1) == groups[asked], (logits.topk(TOP, 1).indices == asked[:, None]).any(1)


def trained_groups(model: Path) -> list[str] | None:
    """Of the things that a model's file says it was trained on last; None where it does not say."""
    with safe_open(model, "pt") as file:
        return json.loads(file.metadata()["gimbal_demo"]).get("groups")


def load_network(comfyui: Path, model: Path) -> nn.Module:
    """The picture model, in float32."""
    network = train_pictures.build_network(comfyui).eval().requires_grad_(False)
    network.load_state_dict(fitting.load_weights(model))
    return network


def guided(network: nn.Module, x: Tensor, sigma: float, context: Tensor, cfg: float) -> Tensor:
    """Guided velocity (N, 16, 1, h, w) at a noise level."""
    level = torch.full((2 * len(x),), sigma * 1000)
    cond, uncond = network(torch.cat([x, x]), level, torch.cat([context, torch.zeros_like(context)])).chunk(2)
    return torch.lerp(uncond, cond, cfg)


def sample(network: nn.Module, prompts: list[str], cfg: float, steps: int, seed: int) -> Tensor:
    """Guided Euler steps: pictures (N, 3, 64, 64)."""
    side = emoji_pictures.SIZE // latent.BLOCK
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(len(prompts), latent.CHANNELS, 1, side, side, generator=generator)
    context = words.encode(prompts)
    for sigma, following in pairwise(recognise.schedule(steps)):
        x = x + guided(network, x, sigma, context, cfg) * (following - sigma)
    return latent.decode(x[:, :, 0])


def sheet(pictures: Tensor, path: Path) -> None:
    """In rows of COLUMNS, as they come."""
    rows = [torch.cat(list(row), -1) for row in pictures.split(COLUMNS) if len(row) == COLUMNS]
    pixels = ((torch.cat(rows, 1).permute(1, 2, 0) + 1) * 127.5).round().byte().numpy()
    image = Image.fromarray(pixels)
    image.resize((3 * image.width, 3 * image.height), Image.Resampling.NEAREST).save(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--comfyui", type=Path, required=True)
    parser.add_argument("--model", type=Path, default=train_pictures.OUTPUT)
    parser.add_argument("--data", type=Path, default=train_pictures.DATA, help="where the packages are, or go")
    parser.add_argument("--cfg", type=float, default=3.5)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--seeds", type=int, nargs="+", default=[3])
    parser.add_argument("--picture", type=Path, help="write the first seed's samples there")
    args = parser.parse_args()
    emoji_pictures.fetch(args.data)
    things = emoji_pictures.load(args.data)
    prompts, asked = held_out_prompts(things, PROMPTS, groups=trained_groups(args.model))
    network = load_network(args.comfyui, args.model)
    with torch.inference_mode():
        found = [sample(network, prompts, args.cfg, args.steps, seed) for seed in args.seeds]
    if args.picture:
        sheet(found[0], args.picture)
        print(args.picture, *prompts, sep="\n  ")
    judge = classifier(things)
    with torch.inference_mode():
        real, shown = real_pictures(things, 1000, torch.Generator().manual_seed(991))
        tell("1000 real pictures", *recognised(judge, things, real, shown))
        by_chance = asked.roll(PROMPTS // 2)
        for seed, pictures in zip(args.seeds, found, strict=True):
            group, thing = recognised(judge, things, pictures, asked)
            tell(f"seed {seed}, {len(prompts)} samples at cfg {args.cfg:g}, {args.steps} steps", group, thing)
            tell("  asked for each other's prompts", *recognised(judge, things, pictures, by_chance))


def tell(what: str, group: Tensor, thing: Tensor) -> None:
    print(f"{what}: group {group.float().mean():.1%}, thing among the first {TOP} {thing.float().mean():.1%}")


if __name__ == "__main__":
    main()
