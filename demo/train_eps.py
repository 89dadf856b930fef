"""Train the demo's eps model: the flow model's twin in the other parameterisation, taught by it.

    .dev/venv/bin/python demo/train_eps.py --comfyui .dev/comfyui/0.3.75

No eps family that ComfyUI's loader recognises is small (SD1.5 is 27 MB at one level, PixArt 75 MB at one block), so this
file has the flow model's layout and is sampled behind ComfyUI's own ModelSamplingDiscrete node, set to eps.

A state x0 + sigma n is (1 + sigma) times the flow path's at t = sigma / (1 + sigma), where eps = x_t + (1 - t) v. So the
flow model, frozen, says for every state what eps it would predict, and the eps model starts from its weights and learns
that: a target without the noise of a single picture. Real pictures are what the states are made of.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
import sys
import time
from copy import deepcopy
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parent))
import letters
import train
from gimbal_demo import conditioning, latent

OUTPUT = train.OUTPUT.with_name("gimbal_letters_eps_fp16.safetensors")
WEIGHT_CAP = 25.0  # of the loss in eps; below it the loss is that of the velocity, (1 + sigma)^2 times as large
SAVE_SECONDS = 240


def noise_levels() -> Tensor:
    """ComfyUI's ModelSamplingDiscrete: (1000,) sigmas, rising."""
    from comfy.model_sampling import ModelSamplingDiscrete

    return ModelSamplingDiscrete().sigmas


def predict(network: nn.Module, x: Tensor, sigma: Tensor, step: Tensor, context: Tensor, pooled: Tensor) -> Tensor:
    """eps at x = x0 + sigma n, as ComfyUI calls an eps model. x (N, C, h, w), sigma and step (N,)."""
    scaled = x / (1 + sigma.square()).sqrt()[:, None, None, None]
    return network(scaled, step.float(), context=context, y=pooled).float()


def taught(teacher: nn.Module, x: Tensor, sigma: Tensor, context: Tensor, pooled: Tensor) -> Tensor:
    """eps that the flow model predicts at x = x0 + sigma n."""
    t = sigma / (1 + sigma)
    on_path = x / (1 + sigma)[:, None, None, None]
    velocity = teacher(on_path, t * 1000, context=context, y=pooled).float()
    return on_path + (1 - t)[:, None, None, None] * velocity


def batch_loss(
    network: nn.Module,
    teacher: nn.Module,
    levels: Tensor,
    clean: Tensor,
    labels: Tensor,
    generator: torch.Generator,
) -> Tensor:
    """Mean square of the student's eps against the teacher's, weighted towards high noise."""
    count = len(clean)
    context, pooled = conditioning.codes(labels)
    keep = (torch.rand(count, generator=generator) >= train.DROP).float()
    context, pooled = context * keep[:, None, None], pooled * keep[:, None]
    t = train.flow_levels(count, generator)
    step = torch.searchsorted(levels, t / (1 - t)).clamp(max=len(levels) - 1)
    sigma = levels[step]
    x = clean + sigma[:, None, None, None] * torch.randn(clean.shape, generator=generator)
    with torch.autocast("cpu", torch.bfloat16):
        with torch.no_grad():
            target = taught(teacher, x, sigma, context, pooled)
        eps = predict(network, x, sigma, step, context, pooled)
    weight = (1 + sigma).square().clamp(max=WEIGHT_CAP)
    return ((eps - target).square().mean((1, 2, 3)) * weight).mean()


def fit(args: argparse.Namespace, network: nn.Module, record: dict) -> None:
    teacher = deepcopy(network).eval().requires_grad_(False)
    levels = noise_levels()
    masks, labels = letters.glyphs(args.glyphs, args.seed)
    generator = torch.Generator().manual_seed(args.seed)
    optimizer = train.make_optimizer(network, args.rate)
    average = {k: v.detach().clone() for k, v in network.state_dict().items()}
    start, losses = time.monotonic(), []
    saved = start
    for step in range(args.iterations):
        for group in optimizer.param_groups:
            group["lr"] = train.learning_rate(step / args.iterations, step, args.rate)
        chosen = torch.randint(args.glyphs, (train.BATCH,), generator=generator)
        clean = latent.encode(letters.paint(masks[chosen], generator))
        loss = batch_loss(network, teacher, levels, clean, labels[chosen], generator)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        losses = [*losses[-199:], loss.item()]
        train.update_average(average, network, step)
        seconds = time.monotonic() - start
        if step % 100 == 0 or step == args.iterations - 1:
            print(f"step {step:6d}  loss {sum(losses) / len(losses):.4f}  {seconds:.0f} s", flush=True)
        if time.monotonic() - saved > SAVE_SECONDS or step == args.iterations - 1:
            saved = time.monotonic()
            loss_now = round(sum(losses) / len(losses), 4)
            about = record | {"steps_done": step + 1, "seconds": round(seconds), "final_loss": loss_now}
            half = {name: value.half().contiguous() for name, value in average.items()}
            save_file(half, args.output, metadata={"gimbal_demo": json.dumps(about)})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--comfyui", type=Path, required=True, help="a ComfyUI checkout")
    parser.add_argument("--iterations", type=int, default=800)
    parser.add_argument("--glyphs", type=int, default=30000)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1, help="part of the recipe: sums are taken in another order")
    parser.add_argument("--flow", type=Path, default=train.OUTPUT, help="the flow model: teacher and starting weights")
    parser.add_argument("--output", type=Path, default=OUTPUT)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)
    network = train.build_network(args.comfyui)
    network.load_state_dict({name: value.float() for name, value in load_file(args.flow).items()})
    record = {
        "classes": conditioning.CLASSES,
        "prediction": "eps",
        "glyphs": args.glyphs,
        "iterations": args.iterations,
        "batch": train.BATCH,
        "peak_rate": args.rate,
        "flow_sha256": hashlib.sha256(args.flow.read_bytes()).hexdigest(),
        "seed": args.seed,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "machine": platform.machine(),
    }
    fit(args, network, record)
    print(f"{args.output} ({args.output.stat().st_size / 2**20:.1f} MB)")


if __name__ == "__main__":
    main()
