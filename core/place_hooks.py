"""Forward hooks at a network's places, which live for one call of it and are gone however that ends."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from .places import Place, is_linear

Act = Callable[["Place", Tensor], Tensor]

_CHANNELS_FIRST = ("Conv", "GroupNorm")  # class names' parts: modules that know channels at dimension 1 only


@contextmanager
def observing(network: nn.Module, modules: Iterable[str]) -> Iterator[list[Place]]:
    """While it is entered, one call of the network fills the list with the places that the call passed.

    Left out: modules that the call did not enter or entered twice, outputs that are no floating-point tensors of at
    least 3 dimensions, and blocks within a block that is in the list.

    Raises:
        ValueError: the network has no module of a name.
    """
    seen: list[Place] = []
    entered: Counter[str] = Counter()

    def observe(name: str, module: nn.Module, output: Any) -> None:
        entered[name] += 1
        for part, y in enumerate(_parts(output)):
            if isinstance(y, Tensor) and y.is_floating_point() and y.ndim >= 3:
                axis = _channel_axis(module, y)
                seen.append(Place(name, part, y.shape[axis], axis))

    with _hooks(network, modules, observe):
        yield seen
    once = {place.name for place in seen if entered[place.name] == 1}
    seen[:] = [place for place in seen if place.name in once and not _outer(place.name) & once]


@contextmanager
def acting(network: nn.Module, places: Sequence[Place], act: Act) -> Iterator[set[Place]]:
    """While it is entered, each place's output y becomes act(place, y). Enter it for one call of the network.

    No hook outlives it, however it is left. An output that does not fit its place is left as it is.

    Yields:
        The places passed so far: what is missing after the call was not reached, or had another shape.
    Raises:
        ValueError: the network lacks a place's module.
    """
    at: dict[str, dict[int, Place]] = {}
    for place in places:
        at.setdefault(place.name, {})[place.part] = place
    passed: set[Place] = set()

    def change(name: str, module: nn.Module, output: Any) -> Any:
        wanted, parts = at[name], _parts(output)
        changed = list(parts)
        for part, place in wanted.items():
            if part < len(parts) and _fits(place, parts[part]):
                changed[part] = act(place, parts[part])
                passed.add(place)
        if all(new is old for new, old in zip(changed, parts, strict=True)):
            return None  # torch then keeps the output itself
        return _like(output, changed)

    with _hooks(network, at, change):
        yield passed


@contextmanager
def _hooks(network: nn.Module, modules: Iterable[str], see: Callable[[str, nn.Module, Any], Any]) -> Iterator[None]:
    """Forward hooks see(name, module, output) on these modules; all gone at the end, also if one cannot be put on."""
    named = {name: _module(network, name) for name in modules}
    found = {name: module for name, module in named.items() if module is not None}
    missing = [name for name in named if name not in found]
    if missing:
        raise ValueError(
            f"places: {type(network).__name__} has no module {missing[0]!r} ({len(missing)} are missing); "
            "use what was measured on this architecture."
        )
    handles = []
    try:
        for name, module in found.items():
            handles.append(
                module.register_forward_hook(lambda module, _, output, name=name: see(name, module, output))
            )
        yield
    finally:
        for handle in handles:
            handle.remove()


def _module(network: nn.Module, name: str) -> nn.Module | None:
    """By its path: a walk over all modules would take longer than all hooks together."""
    try:
        return network.get_submodule(name)
    except AttributeError:
        return None


def _outer(name: str) -> set[str]:
    parts = name.split(".")
    return {".".join(parts[:length]) for length in range(1, len(parts))}


def _channel_axis(module: nn.Module, y: Tensor) -> int:
    """-1 for tokens. Maps (B, C, *spatial) are known by convolutions or group norms in the module that gives them."""
    if y.ndim == 3 or is_linear(module):
        return -1
    inside = (type(part).__name__ for part in module.modules())
    return 1 if any(mark in name for name in inside for mark in _CHANNELS_FIRST) else -1


def _fits(place: Place, y: Any) -> bool:
    return isinstance(y, Tensor) and y.is_floating_point() and y.ndim >= 3 and y.shape[place.axis] == place.channels


def _parts(output: Any) -> tuple[Any, ...]:
    return tuple(output) if isinstance(output, tuple | list) else (output,)


def _like(output: Any, parts: list[Any]) -> Any:
    if not isinstance(output, tuple | list):
        return parts[0]
    if hasattr(output, "_fields"):  # a named tuple
        return type(output)(*parts)
    return type(output)(parts)
