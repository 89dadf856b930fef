"""Train the demo model: a small flow-matching network in Stable Diffusion 3's layout.

    python demo/train.py --comfyui PATH [--iterations N]

The network is ComfyUI's own, so the file loads through "Load Diffusion Model" as any other. Everything random is
seeded: the same machine, thread count and torch give the same file. What the shipped file was made with is in its
safetensors metadata and in demo/README.md.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import platform
import sys
import time
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parent))
import letters
from gimbal_demo import conditioning, latent

DEPTH = 3  # ComfyUI reads depth off the width: hidden = 64 * depth, one head per 64
POSITIONS = 16  # patches a side that have a position: twice the trained 8, so that larger canvases run
BATCH = 48
DROP = 0.12  # share of samples trained without their class, for classifier-free guidance
OUTPUT = Path(__file__).resolve().parent / "models" / "gimbal_letters_fp16.safetensors"


def build_network(comfyui: Path, positions: int = POSITIONS) -> nn.Module:
    """ComfyUI's SD3 network at the demo's size, initialised (ComfyUI leaves weights unset)."""
    sys.path.insert(0, str(comfyui))
    sys.argv = [sys.argv[0], "--cpu"]
    import comfy.options

    comfy.options.enable_args_parsing()
    import comfy.supported_models

    width = conditioning.WIDTH
    config = {
        "in_channels": latent.CHANNELS,
        "out_channels": latent.CHANNELS,
        "patch_size": 2,
        "depth": DEPTH,
        "input_size": None,
        "adm_in_channels": width,
        "context_embedder_config": {
            "target": "torch.nn.Linear",
            "params": {"in_features": width, "out_features": 64 * DEPTH},
        },
        "num_patches": positions**2,
        "pos_embed_max_size": positions,
        "qk_norm": "rms",
        "pos_embed_scaling_factor": None,
        "x_block_self_attn_layers": [],
    }
    model_config = comfy.supported_models.SD3(config)
    model_config.set_inference_dtype(torch.float32, None)
    network = model_config.get_model({}, "").diffusion_model
    initialise(network, positions)
    return network.train().requires_grad_(True)


def initialise(network: nn.Module, positions: int) -> None:
    from comfy.ldm.modules.diffusionmodules.mmdit import get_2d_sincos_pos_embed

    for name, parameter in network.named_parameters():
        with torch.no_grad():
            if parameter.ndim >= 2:
                parameter.normal_(0, 0.7 * parameter[0].numel() ** -0.5)
            elif name.endswith("bias"):
                parameter.zero_()
            else:
                parameter.fill_(1.0)
            # As DiT: blocks and output start near zero, so that training starts from an easy function.
            if "adaLN_modulation" in name or "final_layer.linear" in name:
                parameter.mul_(0.05)
    table = get_2d_sincos_pos_embed(64 * DEPTH, positions)
    network.pos_embed.copy_(torch.from_numpy(table)[None])


def flow_levels(count: int, generator: torch.Generator) -> Tensor:
    """Random noise levels (count,), between 0 and 1."""
    sigma = torch.sigmoid(torch.randn(count, generator=generator) * 1.2)
    return 2 * sigma / (1 + sigma)  # towards noise, where ComfyUI's SD3 schedule (shift 3) spends its steps


def batch_loss(network: nn.Module, clean: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
    """Flow-matching loss: predict v = noise - clean at (1 - sigma) clean + sigma noise."""
    count = len(clean)
    context, pooled = conditioning.codes(labels)
    keep = (torch.rand(count, generator=generator) >= DROP).float()
    context, pooled = context * keep[:, None, None], pooled * keep[:, None]
    sigma = flow_levels(count, generator)
    noise = torch.randn(clean.shape, generator=generator)
    s = sigma[:, None, None, None]
    noisy = (1 - s) * clean + s * noise
    with torch.autocast("cpu", torch.bfloat16):
        velocity = network(noisy, sigma * 1000, context=context, y=pooled)
    return F.mse_loss(velocity.float(), noise - clean)


def learning_rate(progress: float, step: int, peak: float) -> float:
    return peak * min(1.0, (step + 1) / 200) * (0.5 + 0.5 * math.cos(math.pi * progress))


def make_optimizer(network: nn.Module, peak: float) -> torch.optim.Optimizer:
    matrices = [p for p in network.parameters() if p.ndim >= 2]
    vectors = [p for p in network.parameters() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": 0.02}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, peak, betas=(0.9, 0.99))


def update_average(average: dict[str, Tensor], network: nn.Module, step: int) -> None:
    """Exponential average of the weights, quick at first."""
    decay = min(0.9985, (1 + step) / (10 + step))
    with torch.no_grad():
        for name, value in network.state_dict().items():
            average[name].lerp_(value, 1 - decay)


def train(network: nn.Module, glyph_count: int, iterations: int, peak: float, seed: int) -> tuple[dict, float]:
    """Returns the averaged weights and the last 200 steps' mean loss."""
    masks, labels = letters.glyphs(glyph_count, seed)
    generator = torch.Generator().manual_seed(seed)
    optimizer = make_optimizer(network, peak)
    average = {k: v.detach().clone() for k, v in network.state_dict().items()}
    start, losses = time.monotonic(), []
    for step in range(iterations):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step / iterations, step, peak)
        chosen = torch.randint(glyph_count, (BATCH,), generator=generator)
        clean = latent.encode(letters.paint(masks[chosen], generator))
        loss = batch_loss(network, clean, labels[chosen], generator)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        losses = [*losses[-199:], loss.item()]
        update_average(average, network, step)
        if step % 100 == 0 or step == iterations - 1:
            print(
                f"step {step:6d}  loss {sum(losses) / len(losses):.4f}  {time.monotonic() - start:.0f} s", flush=True
            )
    return average, sum(losses) / len(losses)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--comfyui", type=Path, required=True, help="a ComfyUI checkout")
    parser.add_argument("--iterations", type=int, default=12000)
    parser.add_argument("--glyphs", type=int, default=30000)
    parser.add_argument("--rate", type=float, default=1.5e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2, help="part of the recipe: sums are taken in another order")
    parser.add_argument("--start", type=Path, help="go on from this file's weights, with a schedule of its own")
    parser.add_argument("--output", type=Path, default=OUTPUT)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)
    network = build_network(args.comfyui)
    if args.start is not None:
        network.load_state_dict({name: value.float() for name, value in load_file(args.start).items()})
    start = time.monotonic()
    weights, loss = train(network, args.glyphs, args.iterations, args.rate, args.seed)
    record = {
        "classes": conditioning.CLASSES,
        "glyphs": args.glyphs,
        "iterations": args.iterations,
        "batch": BATCH,
        "peak_rate": args.rate,
        "start_sha256": hashlib.sha256(args.start.read_bytes()).hexdigest() if args.start else None,
        "seed": args.seed,
        "seconds": round(time.monotonic() - start),
        "final_loss": round(loss, 4),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "machine": platform.machine(),
    }
    args.output.parent.mkdir(parents=True, exist_ok=True)
    half = {name: value.half().contiguous() for name, value in weights.items()}
    save_file(half, args.output, metadata={"gimbal_demo": json.dumps(record)})
    print(f"{args.output} ({args.output.stat().st_size / 2**20:.1f} MB) {json.dumps(record)}")


if __name__ == "__main__":
    main()
