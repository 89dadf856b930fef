"""How many of the demo's eps model's guided samples does the classifier of `recognise.py` recognise?

    .dev/venv/bin/python demo/recognise_eps.py --comfyui .dev/comfyui/0.3.75

Samples with ComfyUI's own samplers on its karras schedule.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parent))
import recognise

import letters
import train_eps
from gimbal_demo import conditioning, latent

SOLVERS = ("euler", "dpmpp_2m")


def sample(network: nn.Module, solver: str, labels: Tensor, cfg: float, steps: int, seed: int) -> Tensor:
    """Pictures (N, 3, 64, 64)."""
    from comfy.k_diffusion import sampling

    levels = train_eps.noise_levels()
    context, pooled = conditioning.codes(torch.cat([labels, torch.full_like(labels, -1)]))

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        both = sigma.repeat(2)
        step = (both[:, None].log() - levels.log()).abs().argmin(1)
        cond, uncond = train_eps.predict(network, torch.cat([x, x]), both, step, context, pooled).chunk(2)
        return x - sigma[:, None, None, None] * (uncond + cfg * (cond - uncond))

    side = letters.SIZE // latent.BLOCK
    noise = torch.randn(len(labels), latent.CHANNELS, side, side, generator=torch.Generator().manual_seed(seed))
    sigmas = sampling.get_sigmas_karras(steps, float(levels[0]), float(levels[-1]))
    x = noise * (1 + sigmas[0] ** 2).sqrt()
    return latent.decode(getattr(sampling, f"sample_{solver}")(denoise, x, sigmas, disable=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--comfyui", type=Path, required=True)
    parser.add_argument("--model", type=Path, default=train_eps.OUTPUT)
    parser.add_argument("--samples", type=int, default=200)
    parser.add_argument("--cfg", type=float, default=3.0)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--seed", type=int, default=3)
    args = parser.parse_args()
    network = recognise.load_network(args.comfyui, args.model)
    judge = recognise.classifier()
    with torch.inference_mode():
        labels = torch.arange(args.samples) % len(conditioning.CLASSES)
        for solver in SOLVERS:
            right = judge(sample(network, solver, labels, args.cfg, args.steps, args.seed)).argmax(1) == labels
            by_class = " ".join(
                f"{c} {right[labels == i].float().mean():.0%}" for i, c in enumerate(conditioning.CLASSES)
            )
            setting = f"cfg {args.cfg:g}, {args.steps} steps, {solver} karras"
            print(f"samples at {setting}: {right.float().mean():.1%} of {args.samples} recognised; {by_class}")


if __name__ == "__main__":
    main()
