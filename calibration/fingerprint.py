"""Digests of arbitrary values: do these inputs make the same calibration as those?"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Set
from functools import partial
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType

import torch
from torch import Tensor, nn

DEPTH = 12  # of objects in objects; deeper ones count by their type
MOST = 20_000  # objects; what is met later counts by its type
SAMPLES = 64  # values of a weight that stand for all of them


def digest(*values: object, opaque: tuple[type, ...] = ()) -> str:
    """A short text that is equal for equal values: numbers, texts, tensors, containers, functions, plain objects.

    Functions count by name and by what they hold on to, objects by type and attributes, wherever they lie in memory.
    Networks and instances of `opaque` count by their type alone: digest their weights with `weights_digest`.
    """
    state = hashlib.blake2b(digest_size=16)
    for part in _parts(values, (nn.Module, ModuleType, *opaque), {}, 0):
        state.update(len(part).to_bytes(8, "little"))
        state.update(part)
    return state.hexdigest()


def weights_digest(weights: Mapping[str, Tensor]) -> str:
    """Of names, shapes, dtypes and evenly spaced values of every tensor; quantized ones by their stored parts.

    Cheap rather than complete: up to 64 values of a tensor are read, so that a large model takes a second or two.
    """
    state = hashlib.blake2b(digest_size=16)
    for name in sorted(weights):
        state.update(name.encode())
        for kind, values in stored(weights[name]):
            state.update(f"{kind} {values.dtype} {tuple(values.shape)}".encode())
            state.update(_bytes(_sampled(values)))
    return state.hexdigest()


def stored(weight: Tensor) -> Iterator[tuple[str, Tensor]]:
    """The plain tensors that a weight consists of, each with the kind of the weight."""
    flatten = getattr(weight, "__tensor_flatten__", None)
    if flatten is not None:  # torchao's tensors, ComfyUI's QuantizedTensor
        for part in flatten()[0]:
            yield from ((f"{type(weight).__name__} {part}", values) for _, values in stored(getattr(weight, part)))
    elif type(weight) in (Tensor, nn.Parameter):
        yield "", weight.detach()
    else:  # a tensor with attributes, such as GGUF's
        yield type(weight).__name__, weight.detach().as_subclass(Tensor)


def _sampled(values: Tensor) -> Tensor:
    if values.is_meta or values.numel() == 0:
        return torch.zeros(0)
    return values.reshape(-1)[:: max(1, values.numel() // SAMPLES)]


def _bytes(values: Tensor) -> bytes:
    return values.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def _parts(value: object, opaque: tuple[type, ...], seen: dict[int, int], depth: int) -> Iterator[bytes]:
    name = f"{type(value).__module__}.{type(value).__qualname__}".encode()
    if value is None or isinstance(value, bool | int | float | complex | str | bytes | torch.dtype | torch.device):
        yield name + repr(value).encode("utf-8", "replace")
        return
    if isinstance(value, type):
        yield f"{value.__module__}.{value.__qualname__}".encode()
        return
    yield name
    if isinstance(value, Tensor):
        for kind, values in stored(value):
            yield f"{kind} {values.dtype} {tuple(values.shape)}".encode()
            yield b"" if values.is_meta else _bytes(values)
        return
    if id(value) in seen:
        yield seen[id(value)].to_bytes(8, "little")  # which of the objects met so far
        return
    if isinstance(value, opaque) or depth >= DEPTH or len(seen) >= MOST:
        return
    seen[id(value)] = len(seen)
    for inner in _contents(value, lambda each: digest(each, opaque=opaque)):
        yield from _parts(inner, opaque, seen, depth + 1)


def _contents(value: object, key: Callable[[object], str]) -> Iterator[object]:
    if isinstance(value, Mapping):
        for name in sorted(value, key=lambda name: name if isinstance(name, str) else key(name)):
            yield name
            yield value[name]
    elif isinstance(value, Set):
        yield from sorted(key(each) for each in value)
    elif isinstance(value, list | tuple):
        yield len(value)
        yield from value
    elif isinstance(value, MethodType):
        yield from (value.__func__, value.__self__)
    elif isinstance(value, FunctionType):
        yield from (value.__module__, value.__qualname__, value.__defaults__, value.__kwdefaults__)
        for cell in value.__closure__ or ():
            try:
                yield cell.cell_contents
            except ValueError:  # not filled yet
                yield "empty"
    elif isinstance(value, partial):
        yield from (value.func, value.args, value.keywords)
    elif isinstance(value, BuiltinFunctionType):
        yield value.__qualname__
    else:
        yield getattr(value, "__dict__", None)
