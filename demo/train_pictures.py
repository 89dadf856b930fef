"""Train the picture model: a small flow-matching network in Wan's layout that draws things asked for in words.

    python demo/train_pictures.py --comfyui PATH [--iterations N]

The network is ComfyUI's own, so the file loads through "Load Diffusion Model" as any other. (Stable Diffusion 3's layout
ties width to depth, 64 per block: eight blocks would take 150 MB.) Stopped at any time, the same command goes on where it
was. The learning rate is constant and falls to 0 over the last fifth of the steps, so that a run may also be ended early,
by going on with fewer --iterations.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
import emoji_pictures
import fitting
import words
from gimbal_demo import latent

WIDTH, BLOCKS, FEED_FORWARD = 192, 9, 576
BATCH = 64
DROP = 0.1  # share of samples trained without their prompt, for classifier-free guidance
KEPT = HERE.parent / ".dev" / "pictures"
DATA, OUTPUT = KEPT / "packages", KEPT / "gimbal_pictures_fp16.safetensors"


def build_network(comfyui: Path) -> nn.Module:
    """`new_network` of a ComfyUI that is not imported yet."""
    sys.path.insert(0, str(comfyui))
    sys.argv = [sys.argv[0], "--cpu"]
    import comfy.options

    comfy.options.enable_args_parsing()
    return new_network()


def new_network() -> nn.Module:
    """ComfyUI's Wan network at the demo's size, initialised (ComfyUI leaves weights unset)."""
    import comfy.supported_models

    config = {
        "image_model": "wan2.1", "model_type": "t2v", "dim": WIDTH, "out_dim": latent.CHANNELS,
        "num_heads": WIDTH // 128, "ffn_dim": FEED_FORWARD, "num_layers": BLOCKS, "patch_size": (1, 2, 2),
        "freq_dim": 256, "window_size": (-1, -1), "qk_norm": True, "cross_attn_norm": True, "eps": 1e-6,
        "in_dim": latent.CHANNELS,
    }  # fmt: skip
    model_config = comfy.supported_models.WAN21_T2V(config)
    model_config.set_inference_dtype(torch.float32, None)
    network = model_config.get_model({}, "").diffusion_model
    initialise(network)
    return network.train().requires_grad_(True)


def initialise(network: nn.Module) -> None:
    """Blocks and output start near zero, so that training starts from an easy function."""
    for name, parameter in network.named_parameters():
        with torch.no_grad():
            if name == "text_embedding.0.weight":
                parameter.normal_(0, 0.4)  # a table of embeddings: few of its columns are used at a time
            elif "modulation" in name or name.startswith("time_projection"):
                parameter.normal_(0, 0.02)
            elif parameter.ndim >= 2:
                parameter.normal_(0, 0.7 * parameter[0].numel() ** -0.5)
            elif name.endswith("bias"):
                parameter.zero_()
            else:
                parameter.fill_(1.0)
            if "head.head" in name or name.endswith(("self_attn.o.weight", "cross_attn.o.weight", "ffn.2.weight")):
                parameter.mul_(0.2)


def flow_levels(count: int, generator: torch.Generator) -> Tensor:
    """Random noise levels (count,), between 0 and 1."""
    sigma = torch.sigmoid(torch.randn(count, generator=generator) * 1.2)
    return 3 * sigma / (1 + 2 * sigma)  # towards noise, where a shifted schedule spends its steps


class Examples:
    """Batches of pictures and their prompts, made anew each time. generator: where all of it is drawn."""

    def __init__(self, things: emoji_pictures.Things, seed: int) -> None:
        self.things, self.generator = things, torch.Generator().manual_seed(seed)

    def batch(self) -> tuple[Tensor, Tensor]:
        """Latents (BATCH, 16, 1, 16, 16) and context (BATCH, words.TOKENS, words.WIDTH)."""
        count = len(self.things.names)
        chosen = torch.randint(count, (BATCH,), generator=self.generator)
        which = torch.randint(len(emoji_pictures.SETS), (BATCH,), generator=self.generator)
        painted, grounds = emoji_pictures.paint(self.things, which, chosen, self.generator)
        rng = np.random.default_rng(int(torch.randint(2**62, (), generator=self.generator)))
        asked = emoji_pictures.prompts(self.things, chosen, grounds, rng)
        dropped = torch.rand(BATCH, generator=self.generator) < DROP
        asked = ["" if drop else text for drop, text in zip(dropped.tolist(), asked, strict=True)]
        return latent.encode(painted)[:, :, None], words.encode(asked)


def batch_loss(network: nn.Module, clean: Tensor, context: Tensor, generator: torch.Generator) -> Tensor:
    """Flow-matching loss: predict v = noise - clean at (1 - sigma) clean + sigma noise."""
    sigma = flow_levels(len(clean), generator)
    noise = torch.randn(clean.shape, generator=generator)
    s = sigma.view(-1, 1, 1, 1, 1)
    with torch.autocast("cpu", torch.bfloat16):
        velocity = network((1 - s) * clean + s * noise, sigma * 1000, context)
    return F.mse_loss(velocity.float(), noise - clean)


def main() -> None:
    parser = fitting.argument_parser(
        __doc__.splitlines()[0], OUTPUT, iterations=60000, rate=1.5e-3, seed=0, threads=1, glyphs=False
    )
    parser.add_argument("--data", type=Path, default=DATA, help="where the packages go")
    parser.add_argument("--groups", nargs="+", help="of Unicode's, such as 'Food & Drink'; default: all but flags")
    args = parser.parse_args()
    fitting.prepare(args)
    emoji_pictures.fetch(args.data)
    examples = Examples(emoji_pictures.load(args.data, args.groups), args.seed)
    network = build_network(args.comfyui)

    def loss_of(step: int) -> Tensor:
        return batch_loss(network, *examples.batch(), examples.generator)

    recipe = {
        "batch": BATCH,
        "things": len(examples.things.names),
        "groups": sorted(set(examples.things.groups)),
        "data": emoji_pictures.PACKAGES,
        "credit": emoji_pictures.CREDIT,
    }
    fitting.fit(args, network, loss_of, recipe, rate=fitting.trapezoid, generator=examples.generator)


if __name__ == "__main__":
    main()
