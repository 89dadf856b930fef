"""Train the demo's eps model: the flow model's twin in the other parameterisation, taught by it.

    .dev/venv/bin/python demo/train_eps.py --comfyui .dev/comfyui/0.3.75

No eps family that ComfyUI's loader recognises is small (SD1.5 is 27 MB at one level, PixArt 75 MB at one block), so this
file has the flow model's layout and is sampled behind ComfyUI's own ModelSamplingDiscrete node, set to eps.

A state x0 + sigma n is (1 + sigma) times the flow path's at t = sigma / (1 + sigma), where eps = x_t + (1 - t) v. So the
flow model, frozen, says for every state what eps it would predict, and the eps model starts from its weights and learns
that: a target without the noise of a single picture. Real pictures are what the states are made of.
"""

from __future__ import annotations

import sys
from copy import deepcopy
from pathlib import Path

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parent))
import fitting
import letters
import train
from gimbal_demo import conditioning, latent

OUTPUT = train.OUTPUT.with_name("gimbal_letters_eps_fp16.safetensors")
WEIGHT_CAP = 25.0  # of the loss in eps; below it the loss is that of the velocity, (1 + sigma)^2 times as large


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


def main() -> None:
    parser = fitting.argument_parser(__doc__.splitlines()[0], OUTPUT, iterations=800, rate=1e-3, seed=2, threads=1)
    parser.add_argument("--flow", type=Path, default=train.OUTPUT, help="the flow model: teacher and starting weights")
    args = parser.parse_args()
    fitting.prepare(args)
    network = train.build_network(args.comfyui)
    network.load_state_dict(fitting.load_weights(args.flow))
    teacher = deepcopy(network).eval().requires_grad_(False)
    levels = noise_levels()
    masks, labels = letters.glyphs(args.glyphs, args.seed)
    generator = torch.Generator().manual_seed(args.seed)

    def loss_of(step: int) -> Tensor:
        chosen = torch.randint(args.glyphs, (train.BATCH,), generator=generator)
        clean = latent.encode(letters.paint(masks[chosen], generator))
        return batch_loss(network, teacher, levels, clean, labels[chosen], generator)

    recipe = {"prediction": "eps", "batch": train.BATCH, "flow_sha256": fitting.sha256(args.flow)}
    fitting.fit(args, network, loss_of, recipe)


if __name__ == "__main__":
    main()
