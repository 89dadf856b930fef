"""Reading how certain the network is from its own attention, without changing what it computes.

While the network runs, ComfyUI hands every attention call to `optimized_attention_override`; ours looks at q and k of
one self-attention in the middle of the network and calls on, to another pack's override if there is one. It is put
into the options of a single network call, so nothing of it is left behind and node order does not matter.

Families that do not pass these options to their attention (PixArt) are read by a forward hook on one layer of this
model, set for the call and taken off after it.

Cost: at most 1024 queries (64 a frame for long videos) and 1024 keys of 4 heads in one layer. For SDXL at 1024 x 1024
that is 2 x 1024 x 1024 x 64 x 4 = 0.5 GFLOP of a step's 12 TFLOP (cond and uncond), for Flux 1.1 GFLOP of 125 TFLOP:
0.005 % and 0.001 %. On the first call of a run all layers are read, to learn which is the middle one: with the 70 and
57 layers of these two 0.3 % and 0.05 %.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ...core.confidence import entropy_confidence, token_grid
from ..protocols import Executor
from .attention_tokens import padded, patch_size, select_mask, select_tokens, token_counts

OVERRIDE = "optimized_attention_override"
KEYS = 1024

# Networks whose attention runs over text and image tokens together, by class name. All put text first, but for
# HunyuanVideo up to ComfyUI 0.13. In any other network, only attention among exactly the image's tokens is understood.
JOINT = frozenset(
    {
        "MMDiT",
        "OpenAISignatureMMDITWrapper",
        "Flux",
        "Chroma",
        "ChromaRadiance",
        "HunyuanVideo",
        "QwenImageTransformer2DModel",
        "NextDiT",
    }
)
ARGUMENTS = ("q", "k", "v", "heads", "mask", "attn_precision", "skip_reshape")
RENAMED = {"query": "q", "key": "k", "value": "v"}  # one of ComfyUI's attention functions calls them so


class AttentionReader:
    """What one sampling run reads: the confidence of the image's tokens under each cond, until it is taken."""

    def __init__(self) -> None:
        self.target: int | None = None  # which of a call's self-attentions is read; None: not known yet
        self.refusal = "No call of the network was seen"
        self._maps: list[tuple[torch.Size, Tensor]] = []  # with the shape of the latent that the network saw

    def take(self, latent: torch.Size) -> Tensor | None:
        """The mean over the conds, (B, h, w) or (B, F, h, w), for a latent of this shape (B, C, *spatial).

        None if nothing fitting was read. What was gathered is forgotten either way.
        """
        maps, self._maps = self._maps, []
        fitting = [m for size, m in maps if size[2:] == latent[2:] and len(m) == latent[0]]
        if not fitting or len({m.shape for m in fitting}) > 1:
            if maps:
                self.refusal = "Its conditions are for areas of the picture"
            return None
        return torch.stack(fitting).mean(0)

    def call(self, executor: Executor, x: Tensor, t: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Run one network call (an APPLY_MODEL wrapper's arguments) and read its attention."""
        place = next((i for i, a in enumerate(args) if isinstance(a, dict) and "cond_or_uncond" in a), None)
        options = kwargs.get("transformer_options") if place is None else args[place]
        if not options or 0 not in options.get("cond_or_uncond", ()):
            return executor(x, t, *args, **kwargs)  # nothing but uncond
        network = executor.class_obj.diffusion_model
        context = args[1] if len(args) > 1 else kwargs.get("c_crossattn")
        call = _Call(self.target, network, x, options, context, kwargs.get("ref_latents"))
        options = {**options, OVERRIDE: call.override(options.get(OVERRIDE))}
        if place is None:
            kwargs = {**kwargs, "transformer_options": options}
        else:
            args = (*args[:place], options, *args[place + 1 :])
        with call.hooked(network):
            result = executor(x, t, *args, **kwargs)
        self._keep(call, x.shape)
        return result

    def _keep(self, call: _Call, latent: torch.Size) -> None:
        if not call.maps:
            self.target = None  # where the network now runs fewer layers: look anew next time
            self.refusal = call.refusal or f"Attention among the image's tokens of {call.family} could not be seen"
            return
        if self.target is None:
            self.target = len(call.maps) // 2
            chosen = call.maps[self.target]
        else:
            (chosen,) = call.maps
        self._maps.extend((latent, certainty) for certainty in chosen)


class _Call:
    """One call of the network."""

    def __init__(
        self,
        target: int | None,
        network: nn.Module,
        x: Tensor,
        options: dict,
        context: Tensor | None,
        references: list[Tensor] | None,
    ):
        self.target = target
        self.family = type(network).__name__
        self.batch = x.shape[0]
        chunks = options["cond_or_uncond"]
        size = self.batch // len(chunks)
        self.conds = [slice(i * size, (i + 1) * size) for i, chunk in enumerate(chunks) if chunk == 0]
        self.text = 0 if context is None else context.shape[1]
        self.patch = patch_size(network, x.ndim - 2)
        self.grid = token_counts(x.shape[2:], self.patch)
        self.references = sum(math.prod(token_counts(r.shape[2:], self.patch)) for r in references or ())
        blocks: Any = getattr(network, "double_blocks", None)
        self.padding = getattr(network, "pad_tokens_multiple", None)
        self.image_first = bool(blocks) and getattr(blocks[0], "flipped_img_txt", False)
        self.found = 0  # self-attentions over the image so far
        self.alike = 0  # calls of which sizes do not tell whether they are self- or cross-attention
        self.maps: list[list[Tensor]] = []  # per attention that was read, one map for each cond
        self.refusal = ""

    def override(self, before: Any) -> Any:
        def read(func: Any, *args: Any, **kwargs: Any) -> Tensor:
            self._see(args, kwargs)
            return func(*args, **kwargs) if before is None else before(func, *args, **kwargs)

        return read

    @contextlib.contextmanager
    def hooked(self, network: nn.Module) -> Iterator[None]:
        """For PixArt: the output of the middle block's qkv layer, as a view of q and k."""
        blocks = getattr(network, "blocks", None)
        if not self.family.startswith("PixArt") or not blocks:
            yield
            return
        attention = blocks[len(blocks) // 2].attn

        def read(_: nn.Module, __: Any, output: Tensor) -> None:
            q, k, v = output.chunk(3, dim=-1)
            q, k = attention.q_norm(q), attention.k_norm(k)
            self._see((q, k, v, attention.num_heads), {})

        handle = attention.qkv.register_forward_hook(read)
        try:
            yield
        finally:
            handle.remove()

    def _see(self, args: tuple, kwargs: dict) -> None:
        given = {
            RENAMED.get(name, name): value for name, value in (*zip(ARGUMENTS, args, strict=False), *kwargs.items())
        }
        q, k = given["q"], given["k"]
        if not isinstance(q, Tensor) or not isinstance(k, Tensor):
            self.refusal = "This ComfyUI hands attention its tokens in a form that is not known here"
            return
        options = given.get("transformer_options") or {}
        image = self._image(q, k, options)
        if image is None:
            return
        self.found += 1
        if self.target not in (None, self.found - 1):
            return
        start, grid = image
        indices, small = token_grid(grid)
        rows = torch.tensor(indices).to(q.device, non_blocking=True) + start
        count = min(k.shape[-2], KEYS)
        keys = torch.arange(count, device=k.device) * k.shape[-2] // count
        heads = given["heads"]
        maps = []
        for cond in self.conds:
            certainty = entropy_confidence(
                select_tokens(q[cond], rows, given),
                select_tokens(k[cond], keys, given),
                heads,
                max_tokens=max(len(indices), len(keys)),
                mask=select_mask(given.get("mask"), cond, rows, keys, q, k),
                scale=given.get("scale"),
            )
            maps.append(certainty.unflatten(1, small))
        self.maps.append(maps)

    def _image(self, q: Tensor, k: Tensor, options: dict) -> tuple[int, tuple[int, ...]] | None:
        """Where the image's tokens start among q's, and the grid they form; None if this is not attention among them."""
        tokens = q.shape[-2]
        if tokens != k.shape[-2] or q.shape[0] != self.batch:
            return None
        grid = self.grid
        if self.patch is None:  # a UNet: every level has its own size
            level = options.get("activations_shape")
            if level is None or len(level) != 4:
                return None
            grid = tuple(level[2:])
        image = math.prod(grid)
        if self.family in JOINT:
            text = padded(self.text, self.padding)
            # Fewer: a refiner of either part, or a second attention of the image alone.
            if self.text == 0 or tokens < text + padded(image + self.references, self.padding):
                return None
            # Networks may add tokens of their own to the text. The one that pads does so at the end of each part.
            start = text if self.padding else tokens - image - self.references
            return (0 if self.image_first else start), grid
        if tokens != image:
            return None
        if tokens == self.text:  # every block attends to itself first, then to the text
            self.alike += 1
            if self.alike % 2 == 0:
                return None
        return 0, grid
