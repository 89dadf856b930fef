"""Places of a network whose outputs are measured or corrected: their names, in a full-precision network and its quantized form.

A place is the output of a linear layer, or of a transformer or UNet block. It is found by its module's name, so that the
same place is found in a full-precision network and in a quantized one whose classes differ. Three kinds: all linear layers;
of these the ones that write to the residual stream, which keep the gain with a fraction of the channels; and blocks, which
are left where a loader fuses linear layers.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn

Kind = Literal["residual", "linear", "block"]
KINDS = ("residual", "linear", "block")

# Names of the last part of the path of queries, keys and values, which may be as wide as the residual stream.
_ATTENTION_INPUT = re.compile(r"(^|_)(q|k|v|qk|kv|qkv)(_|$)|^w(q|k|v|qkv)$")


@dataclass(frozen=True)
class Place:
    """One tensor that a module gives.

    Attributes:
        name: of the module within the network. part: which of its outputs, 0 where it gives a single tensor.
        channels: C. axis: the dimension of the channels, -1 in (B, ..., C) or 1 in (B, C, *spatial).
    """

    name: str
    part: int
    channels: int
    axis: int

    def __post_init__(self) -> None:
        if self.part < 0 or self.channels < 1 or self.axis not in (-1, 1):
            raise ValueError(f"Place: {self} cannot be; part is 0 or more, channels 1 or more, axis -1 or 1.")


def names(network: nn.Module, kind: Kind) -> list[str]:
    """Names of the modules that may be places, in the order of the network's definition.

    Args:
        kind: "linear": all linear layers, any library's. "residual": in each block those as wide as most of its linear
            layers' inputs, without queries, keys and values: the outputs of attention and of the MLP. "block": the
            members of the outermost module lists, and modules named like a block beside them; a plain sequence of
            layers is opened, as UNets call its members one by one.
    Raises:
        ValueError: kind is unknown.
    """
    if kind == "linear":
        return [name for name, module in network.named_modules() if name and is_linear(module)]
    if kind == "residual":
        return [name for block, module in _blocks(network, "") for name in _residual(block, module)]
    if kind == "block":
        return [name for block, module in _blocks(network, "") for name in _opened(block, module)]
    raise ValueError(f"places.names: kind is {kind!r}; pass one of {', '.join(KINDS)}.")


def common_names(full: nn.Module, quantized: nn.Module, kind: Kind) -> list[str]:
    """The full-precision network's names that the quantized one has too; linear layers with as many output features.

    Raises:
        ValueError: there are none; kind is unknown.
    """
    found = _common(full, quantized, kind)
    if not found:
        raise ValueError(
            f"places.common_names: the networks ({type(full).__name__}, {type(quantized).__name__}) have no {kind} place "
            f"in common; {'load both as one architecture' if kind == 'block' else 'use blocks'}."
        )
    return found


def find(full: nn.Module, quantized: nn.Module) -> tuple[Kind, list[str]]:
    """The kind of place to use for this pair, and the names: residual if the quantized network has all of them, else
    blocks.

    Raises:
        ValueError: the networks have no block in common.
    """
    residual = _common(full, quantized, "residual")
    if residual and residual == names(full, "residual"):
        return "residual", residual
    return "block", common_names(full, quantized, "block")


def is_linear(module: nn.Module) -> bool:
    """Also for classes of other libraries that share nothing with torch's but the attributes."""
    widths = (getattr(module, "in_features", None), getattr(module, "out_features", None))
    return all(isinstance(width, int) for width in widths) and not any(True for _ in module.children())


def multiply_adds(module: nn.Module, output: Tensor) -> int:
    """Of the linear layer that gave this output (..., out): positions x in x out.

    Raises:
        ValueError: the module is no linear layer.
    """
    if not is_linear(module):
        raise ValueError(
            f"places.multiply_adds: {type(module).__name__} is no linear layer; pass linear layers alone."
        )
    width: Any = module.in_features
    return output.numel() * int(width)


def to_text(places: Sequence[Place]) -> str:
    """JSON: for each place [name, part, channels, axis]."""
    return json.dumps([[place.name, place.part, place.channels, place.axis] for place in places])


def from_text(text: str) -> tuple[Place, ...]:
    """What `to_text` gave. ValueError if it is no such text."""
    try:
        return tuple(Place(str(name), *map(int, rest)) for name, *rest in json.loads(text))
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        raise ValueError(f"no list of places: {error}") from error


def _common(full: nn.Module, quantized: nn.Module, kind: Kind) -> list[str]:
    """A quantized layer may be of any class: its name decides, and its number of output features if it tells one."""
    ours, theirs = dict(full.named_modules()), dict(quantized.named_modules())

    def same(name: str) -> bool:
        if kind == "block":
            return name in theirs
        features = ours[name].out_features
        return name in theirs and getattr(theirs[name], "out_features", features) == features

    return [name for name in names(full, kind) if same(name)]


def _residual(block: str, module: nn.Module) -> list[str]:
    linear = {name: part for name, part in module.named_modules() if name and is_linear(part)}
    if not linear:
        return []
    inputs = Counter(part.in_features for part in linear.values())
    width = min(inputs, key=lambda features: (-inputs[features], features))  # the narrower one of a tie
    return [
        f"{block}.{name}"
        for name, part in linear.items()
        if part.out_features == width and not _ATTENTION_INPUT.search(name.rpartition(".")[2])
    ]


def _blocks(module: nn.Module, path: str) -> Iterator[tuple[str, nn.Module]]:
    """Members of the outermost module lists, and children whose name has "block" in it and that hold no list."""
    for name, child in module.named_children():
        full = f"{path}.{name}" if path else name
        if isinstance(child, nn.ModuleList):
            yield from ((f"{full}.{index}", member) for index, member in child.named_children())
        elif "block" in name and not _holds_list_of_blocks(child):
            yield full, child
        else:
            yield from _blocks(child, full)


def _holds_list_of_blocks(module: nn.Module) -> bool:
    return any(isinstance(child, nn.ModuleList) for child in module.children())


def _opened(name: str, module: nn.Module) -> list[str]:
    """The module itself, and the members of what is but a sequence; which of them are called is seen in a call."""
    if not isinstance(module, nn.Sequential):
        return [name]
    return [name, *(f"{name}.{index}" for index, _ in module.named_children())]
