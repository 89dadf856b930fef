"""Nodes that stand in for the loaders of bundled workflows: small random models of a family, with what goes with them.

Installed into the test server's custom_nodes, beside a copy of tiny_models.py.
"""

from __future__ import annotations

import hashlib
import tempfile
from pathlib import Path

import torch
from comfy_api.latest import ComfyExtension, io
from torch import Tensor
from torch.nn import functional as F


def seeded(text: str) -> torch.Generator:
    return torch.Generator().manual_seed(int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest(), "big"))


class Clip:
    """What CLIPTextEncode asks of a CLIP: here a text is a seed."""

    def __init__(self, family):
        self.family = family

    def tokenize(self, text: str, **_) -> str:
        return text

    def encode_from_tokens_scheduled(self, tokens: str, **_) -> list:
        generator = seeded(tokens)
        extra = {
            name: torch.randn(value, generator=generator) if isinstance(value, tuple) else value
            for name, value in self.family.extra.items()
        }
        return [[torch.randn(1, *self.family.context, generator=generator), extra]]


class Vae:
    """What VAEDecode asks of a VAE: the first three channels, eight pixels a position."""

    def decode(self, samples: Tensor) -> Tensor:
        x = samples[:, :3].float()
        spread = x.flatten(1).std(1).clamp(min=1e-6).view(-1, *[1] * (x.ndim - 1))
        x = (0.5 + 0.2 * x / spread).clamp(0, 1)
        if x.ndim == 5:  # (B, C, F, H, W) to (B, F, H, W, C)
            frames = F.interpolate(x.movedim(2, 1).flatten(0, 1), scale_factor=8)
            return frames.unflatten(0, (x.shape[0], -1)).movedim(2, -1)
        return F.interpolate(x, scale_factor=8).movedim(1, -1)


class StandIn:
    """What the nodes below share. Not a node: ComfyUI keeps a node's schema on its class, where heirs would find it."""

    OUTPUTS: tuple[str, ...]

    @classmethod
    def define_schema(cls) -> io.Schema:
        kinds = {"model": io.Model, "clip": io.Clip, "vae": io.Vae}
        return io.Schema(
            node_id=cls.__name__,
            inputs=[io.String.Input("family"), io.String.Input("weights", default="float32")],
            outputs=[kinds[name].Output() for name in cls.OUTPUTS],
        )

    @classmethod
    def execute(cls, family: str, weights: str) -> io.NodeOutput:
        from . import tiny_models

        chosen, models = tiny_models.FAMILIES[family], tiny_models.Tiny(Path(tempfile.mkdtemp()))
        made = {
            "model": lambda: (
                models.model(family) if weights == "float32" else models.twin(family, getattr(torch, weights))
            ),
            "clip": lambda: Clip(chosen),
            "vae": Vae,
        }
        return io.NodeOutput(*(made[name]() for name in cls.OUTPUTS))


class StandInModel(StandIn, io.ComfyNode):
    OUTPUTS = ("model",)


class StandInClip(StandIn, io.ComfyNode):
    OUTPUTS = ("clip",)


class StandInVae(StandIn, io.ComfyNode):
    OUTPUTS = ("vae",)


class StandInCheckpoint(StandIn, io.ComfyNode):
    OUTPUTS = ("model", "clip", "vae")


class StandInGGUF(io.ComfyNode):
    """Under the id and with the inputs of ComfyUI-GGUF's own loader, which this server does not have."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        files = io.Combo.Input("unet_name", options=["flux1-dev-Q4_K_S.gguf"])
        return io.Schema(node_id="UnetLoaderGGUF", inputs=[files], outputs=[io.Model.Output(display_name="MODEL")])

    @classmethod
    def execute(cls, unet_name: str) -> io.NodeOutput:
        from . import tiny_models

        models = tiny_models.Tiny(Path(tempfile.mkdtemp()))
        return io.NodeOutput(models.twin("flux", torch.float8_e5m2))


class StandIns(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [StandInModel, StandInClip, StandInVae, StandInCheckpoint, StandInGGUF]


async def comfy_entrypoint() -> StandIns:
    return StandIns()
