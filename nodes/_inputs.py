"""What nodes have in common: how they declare themselves on old and new versions of ComfyUI, inputs worded once, and what
they ask of and say in the graph that they stand in."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

from comfy_api.latest import io

from ..host import identity
from ..host.messages import Messages, NodeId

Statistics = io.Custom("QDRIFT_STATS")
# Words that people search by.
BURN = (
    "burn",
    "burnt",
    "burned",
    "oversaturated",
    "saturation",
    "contrast",
    "cfg",
    "dynamic threshold",
    "clamp",
    "grain",
)
QUANTIZED = (
    "quantization",
    "gguf",
    "fp8",
    "nvfp4",
    "int4",
    "svdquant",
    "nunchaku",
    "colour shift",
    "color shift",
    "quality loss",
)


def schema(*, search: Iterable[str] = (), reports: bool = False, **fields: Any) -> io.Schema:
    """An io.Schema, without what this version of ComfyUI does not know.

    Args:
        search: words that people type to find the node, beside those of its name.
        reports: what it puts on a model or sampler speaks on the node when that samples. Its output then belongs to the
            one node: ComfyUI must not hand it to another node with the same inputs.
    """
    known = {field.name for field in dataclasses.fields(io.Schema)}
    if search and "search_aliases" in known:
        fields["search_aliases"] = list(search)
    if reports and "not_idempotent" in known:
        fields["not_idempotent"] = True
    fields["hidden"] = [io.Hidden.unique_id, *fields.get("hidden", ())]
    return io.Schema(**fields)


def advanced(inputs: Iterable[io.Input]) -> list[io.Input]:
    """The same inputs, which the node shows only when asked to. Versions of ComfyUI without such inputs show them all."""
    marked = list(inputs)
    for each in marked:
        if hasattr(each, "advanced"):
            each.advanced = True
        elif hasattr(each, "extra_dict"):  # passed on to the frontend, which has known the flag for longer
            each.extra_dict["advanced"] = True
    return marked


def strength() -> io.Float.Input:
    return io.Float.Input(
        "strength",
        default=1.0,
        min=0.0,
        max=1.0,
        step=0.05,
        tooltip="How much of the correction is applied. 1 is all of it; 0 changes nothing, bit for bit.",
    )


def window() -> list[io.Input]:
    inputs = [
        io.Float.Input(
            "start_percent",
            default=0.0,
            min=0.0,
            max=1.0,
            step=0.01,
            tooltip="Where in the noise schedule it starts to act. 0 is the first step, pure noise.",
        ),
        io.Float.Input(
            "end_percent",
            default=1.0,
            min=0.0,
            max=1.0,
            step=0.01,
            tooltip="Where in the noise schedule it stops. 1 is the last step. start 0 and end 1 act on every step.",
        ),
    ]
    return advanced(inputs)


def unique_id(cls: type[io.ComfyNode]) -> str | None:
    return cls.hidden.unique_id if cls.hidden is not None else None


def node_id(cls: type[io.ComfyNode]) -> NodeId:
    return NodeId(unique_id(cls))


def messages(cls: type[io.ComfyNode]) -> Messages:
    """cls has the node's display name as NAME."""
    return Messages(cls.NAME, node_id(cls))


def unchanged(cls: type[io.ComfyNode], value: Any) -> io.NodeOutput:
    """The output of a node whose strength is 0."""
    messages(cls).add("changes nothing: strength is 0")
    return io.NodeOutput(value)


def name_of(cls: type[io.ComfyNode], model: Any, name: str) -> str:
    """The model's file at the input `name`, as the queued graph has it."""
    graph = cls.hidden.prompt if cls.hidden is not None else None
    return identity.model_name(model, graph, unique_id(cls), name)
