"""What the trainings of the demo's models share: arguments, optimizer, the loop, and the file that comes of it."""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import platform
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from gimbal_demo import conditioning
from resuming import Resume, Told

SAVE_SECONDS = 240  # so that little of a long training is lost


def argument_parser(
    description: str, output: Path, *, iterations: int, rate: float, seed: int, threads: int, glyphs: bool = True
) -> argparse.ArgumentParser:
    """glyphs: whether it is a model of letters."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--comfyui", type=Path, required=True, help="a ComfyUI checkout")
    parser.add_argument("--iterations", type=int, default=iterations)
    if glyphs:
        parser.add_argument("--glyphs", type=int, default=30000)
    parser.add_argument("--rate", type=float, default=rate)
    parser.add_argument("--seed", type=int, default=seed)
    parser.add_argument(
        "--threads", type=int, default=threads, help="part of the recipe: sums are taken in another order"
    )
    parser.add_argument("--output", type=Path, default=output)
    return parser


def prepare(args: argparse.Namespace) -> None:
    """Before anything is drawn or initialised. ValueError where there is nothing to train with."""
    for name, least in {"iterations": 1, "glyphs": len(conditioning.CLASSES)}.items():
        if getattr(args, name, least) < least:
            raise ValueError(f"--{name} is {getattr(args, name)}; give {least} or more.")
    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)


def load_weights(path: Path) -> dict[str, Tensor]:
    """In float32."""
    return {name: value.float() for name, value in load_file(path).items()}


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def fit(
    args: argparse.Namespace,
    network: nn.Module,
    loss_of: Callable[[int], Tensor],
    recipe: dict[str, object],
    buffers: Sequence[Tensor] = (),
    *,
    rate: Callable[[int, int, float], float] | None = None,
    generator: torch.Generator | None = None,
) -> None:
    """Train, and write the averaged weights to args.output; until the end now and then to a file `.partial` beside it.

    loss_of: the loss of a step's batch. recipe: what the file's metadata says beside the arguments. buffers: learned
    too. rate: of a step, the number of steps and the peak; default: `cosine`. generator: where loss_of draws all that it
    draws; given, a stopped training leaves a file `.resume`, from which the same call goes on to the same weights.
    """
    optimizer = make_optimizer(network, buffers, args.rate)
    learned = [*network.parameters(), *buffers]
    average = {k: v.detach().clone() for k, v in network.state_dict().items()}
    told, resume = Told(), None
    if generator is not None:
        resume = Resume(args.output.with_suffix(".resume"), network, optimizer, average, generator)
        told = resume.load(args.seed, args.rate)
    saved = time.monotonic()
    start = saved - told.seconds
    partial = args.output.with_suffix(".partial")
    for step in range(told.done, args.iterations):
        for group in optimizer.param_groups:
            group["lr"] = (rate or cosine)(step, args.iterations, args.rate)
        loss = loss_of(step)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(learned, 1.0)
        optimizer.step()
        update_average(average, network, step)
        now = time.monotonic()
        told = told.after(loss.item(), now - start)
        last = step == args.iterations - 1
        if step % 100 == 0 or last:
            print(f"step {step:6d}  loss {told.loss:.4f}  {told.seconds:.0f} s", flush=True)
        if resume is not None and (now - saved > SAVE_SECONDS or last):
            saved = now
            resume.save(told, args.seed, args.rate)
        elif now - saved > SAVE_SECONDS:
            saved = now
            save(args, partial, average, recipe | told.recipe())
    save(args, partial, average, recipe | told.recipe())
    partial.replace(args.output)
    print(f"{args.output} ({args.output.stat().st_size / 2**20:.1f} MB)")


def make_optimizer(network: nn.Module, buffers: Sequence[Tensor], peak: float) -> torch.optim.Optimizer:
    matrices = [p for p in network.parameters() if p.ndim >= 2]
    vectors = [p for p in network.parameters() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": 0.02}, {"params": [*vectors, *buffers], "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, peak, betas=(0.9, 0.99))


def cosine(step: int, steps: int, peak: float) -> float:
    return peak * min(1.0, (step + 1) / 200) * (0.5 + 0.5 * math.cos(math.pi * (step / steps)))


def trapezoid(step: int, steps: int, peak: float) -> float:
    """Constant, and down to 0 over the last fifth: a training may be ended early, by going on with fewer steps."""
    return peak * min(1.0, (step + 1) / 200, (steps - step) / (0.2 * steps))


def update_average(average: dict[str, Tensor], network: nn.Module, step: int) -> None:
    """Exponential average of the weights, quick at first."""
    decay = min(0.9985, (1 + step) / (10 + step))
    with torch.no_grad():
        for name, value in network.state_dict().items():
            average[name].lerp_(value, 1 - decay)


def save(args: argparse.Namespace, path: Path, weights: dict[str, Tensor], recipe: dict[str, object]) -> None:
    letters = {"classes": conditioning.CLASSES, "glyphs": args.glyphs} if "glyphs" in args else {}
    about = letters | {
        "iterations": args.iterations,
        "peak_rate": args.rate,
        "seed": args.seed,
        "torch": torch.__version__,
        "threads": args.threads,
        "machine": platform.machine(),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    half = {name: value.half().contiguous() for name, value in weights.items()}
    save_file(half, path, metadata={"gimbal_demo": json.dumps(about | recipe)})
