"""Simulate Quantization: a model that computes as if its linear layers were quantized, to try formats and corrections."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..core.fakequant import ACTIVATION_BITS, WEIGHT_BITS
from ..host.simulating.fake_linear import FakeQuantized, Quantization, carried_quantization
from ..host.simulating.linear_layers import Layer, describe, kind_of_quantization, linear_layers, stored_as, total_size
from . import _inputs
from ._inputs import QUANTIZED

PRESETS = {"W3A4": (3, 4), "W4A4": (4, 4), "W4A8": (4, 8), "W8A8": (8, 8)}
DEFAULT = "W4A4"
OWN, BY_PRESET, OFF = "own", "by preset", "off"
BLOCKS, ALL = "blocks", "all linear"
PREFIX = "diffusion_model."


class GimbalSimulateQuantization(io.ComfyNode):
    NAME = "Simulate Quantization"

    @classmethod
    def define_schema(cls) -> io.Schema:
        return _inputs.schema(
            node_id="GimbalSimulateQuantization",
            display_name=cls.NAME,
            category="gimbal/qdrift",
            description="Makes a full-precision model compute as if its linear layers were quantized, to see what a format "
            "does to it, or what Quantization Fix mends, without a quantized checkpoint. For experiments only: saves no memory and no time. "
            "Bypass the node to switch it off.",
            search=("fake quantization", *QUANTIZED),
            inputs=[
                io.Model.Input(
                    "model", tooltip="In full precision, or with plain fp8 weights. LoRAs are rounded with it."
                ),
                io.Combo.Input(
                    "preset",
                    options=[*PRESETS, OWN],
                    default=DEFAULT,
                    tooltip="Bits of weights and activations: W3A4 is 3 and 4. own: those of weight_bits and activation_bits, 4 where these say by preset.",
                ),
                io.Combo.Input(
                    "weight_bits",
                    options=[BY_PRESET, *_bits(*WEIGHT_BITS)],
                    default=BY_PRESET,
                    tooltip="Bits of the weights, in place of the preset's.",
                ),
                io.Combo.Input(
                    "activation_bits",
                    options=[BY_PRESET, *_bits(*ACTIVATION_BITS), OFF],
                    default=BY_PRESET,
                    tooltip="Bits of the activations, in place of the preset's. off: activations stay in full precision, as in "
                    "GGUF and other weight-only formats.",
                ),
                *_inputs.advanced(_details()),
            ],
            outputs=[
                io.Model.Output(display_name="model"),
                io.String.Output(
                    display_name="report", tooltip="What is quantized and what was left. Connect it to Preview Any."
                ),
            ],
        )

    @classmethod
    def execute(
        cls,
        model,
        preset: str,
        weight_bits: str,
        activation_bits: str,
        group_size: int,
        rank: int,
        layers: str,
    ) -> io.NodeOutput:
        quantization = Quantization(*_chosen_bits(preset, weight_bits, activation_bits), group_size or None, rank)
        found = list(linear_layers(model.model.diffusion_model))
        _check_model(cls.NAME, model, found)
        chosen, left = _choose(found, layers, rank)
        if not chosen:
            raise ValueError(
                f"{cls.NAME}: none of the model's {len(found)} linear layers is left to quantize; choose layers '{ALL}', or "
                f"a rank below {rank}."
            )
        patched = model.clone()
        for layer in chosen:
            key = f"{PREFIX}{layer.name}.forward"
            forward = FakeQuantized(layer.name, model.get_model_object(key), layer.module, quantization)
            patched.add_object_patch(key, forward)
        report = _report(quantization, chosen, left, model)
        _inputs.messages(cls).info(f"{quantization}, on {len(chosen)} of {len(found)} linear layers.")
        return io.NodeOutput(patched, report)


def _details() -> list[io.Input]:
    return [
        io.Int.Input(
            "group_size",
            default=64,
            min=0,
            max=8192,
            tooltip="How many neighbouring weights share a scale; fewer are more exact. 0: one scale per output channel.",
        ),
        io.Int.Input(
            "rank",
            default=0,
            min=0,
            max=512,
            tooltip="Directions of each weight kept in full precision, as SVDQuant does (it uses 32); only the rest is "
            "rounded. 0: no such branch. The first step takes longer, to find them.",
        ),
        io.Combo.Input(
            "layers",
            options=[BLOCKS, ALL],
            default=BLOCKS,
            tooltip="blocks: attention and feed-forward layers, as quantizers usually do; embeddings, modulation and the "
            "final layer stay in full precision. all linear: those as well. The report lists them.",
        ),
    ]


def _bits(low: int, high: int) -> list[str]:
    return [str(bits) for bits in range(low, high + 1)]


def _chosen_bits(preset: str, weight_bits: str, activation_bits: str) -> tuple[int, int | None]:
    """Of weights and activations: the preset's, but for what is chosen beside it."""
    weights, activations = PRESETS.get(preset, PRESETS[DEFAULT])
    return (
        weights if weight_bits == BY_PRESET else int(weight_bits),
        activations if activation_bits == BY_PRESET else None if activation_bits == OFF else int(activation_bits),
    )


def _check_model(node: str, model: Any, found: list[Layer]) -> None:
    """ValueError if there is nothing to quantize, or it is quantized already."""
    if not found:
        raise ValueError(
            f"{node}: {type(model.model.diffusion_model).__name__} has no linear layers of a kind that it knows, as models with "
            "kernels of their own (nunchaku) have none; use the model's full-precision form."
        )
    for layer in found:
        kind = kind_of_quantization(layer.module)
        if kind:
            raise ValueError(
                f"{node}: this model is quantized already ({layer.name} is {kind}); use its full-precision form, or this one "
                "as it is."
            )
    if carried_quantization(model):
        raise ValueError(
            f"{node}: this model carries a {node} already ({carried_quantization(model)}); connect the model from before it."
        )
    compiled = [key for key, patch in model.object_patches.items() if hasattr(patch, "_orig_mod")]
    if compiled:
        raise ValueError(f"{node}: {compiled[0]} is compiled; put torch.compile behind this node.")


def _choose(found: list[Layer], layers: str, rank: int) -> tuple[list[Layer], dict[str, list[Layer]]]:
    """Which to quantize, and the others by the reason to leave them."""
    chosen: list[Layer] = []
    left: dict[str, list[Layer]] = {}
    for layer in found:
        reason = layer.role if layers == BLOCKS else ""
        if rank and min(layer.weight.shape) <= rank:
            reason = reason or f"too small for rank {rank}"
        if reason:
            left.setdefault(reason, []).append(layer)
        else:
            chosen.append(layer)
    return chosen, left


def _report(quantization: Quantization, chosen: list[Layer], left: dict[str, list[Layer]], model: Any) -> str:
    total = sum(weight.numel() for weight in model.model.diffusion_model.parameters())
    others = total - sum(map(total_size, (chosen, *left.values())))

    def group(title: str, layers: list[Layer]) -> str:
        plural = "s" if len(layers) > 1 else ""
        return f"{title}: {len(layers)} linear layer{plural}, {share(total_size(layers))}\n{describe(layers)}"

    def share(size: int) -> str:
        return f"{100 * size / total:.3g} % of the weights"

    parts = [f"{quantization}. Simulated: it saves no memory and no time.", "", group("Quantized", chosen), ""]
    parts += [group(f"Left, {reason}", layers) for reason, layers in left.items()]
    parts.append(f"Left, not linear (convolutions, norms, biases, tables): {share(others)}")
    if stored_as(chosen):
        parts += ["", f"The model's weights are {stored_as(chosen)}, which has rounded them once before."]
    if model.patches:
        parts += ["", "The LoRAs on this model are merged first and rounded with its weights."]
    return "\n".join(parts)


NODES = [GimbalSimulateQuantization]
