"""Train the demo model: a small flow-matching network in Stable Diffusion 3's layout.

    python demo/train.py --comfyui PATH [--iterations N]

The network is ComfyUI's own, so the file loads through "Load Diffusion Model" as any other. Everything random is
seeded: the same machine, thread count and torch give the same file. What the shipped file was made with is in its
safetensors metadata and in demo/README.md.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parent))
import fitting
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


def main() -> None:
    parser = fitting.argument_parser(__doc__.splitlines()[0], OUTPUT, iterations=12000, rate=1.5e-3, seed=0, threads=2)
    parser.add_argument("--start", type=Path, help="go on from this file's weights, with a schedule of its own")
    args = parser.parse_args()
    fitting.prepare(args)
    network = build_network(args.comfyui)
    if args.start is not None:
        network.load_state_dict(fitting.load_weights(args.start))
    masks, labels = letters.glyphs(args.glyphs, args.seed)
    generator = torch.Generator().manual_seed(args.seed)

    def loss_of(step: int) -> Tensor:
        chosen = torch.randint(args.glyphs, (BATCH,), generator=generator)
        clean = latent.encode(letters.paint(masks[chosen], generator))
        return batch_loss(network, clean, labels[chosen], generator)

    recipe = {"batch": BATCH, "start_sha256": fitting.sha256(args.start) if args.start else None}
    fitting.fit(args, network, loss_of, recipe)


if __name__ == "__main__":
    main()
