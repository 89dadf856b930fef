"""What all runs of a recorded trajectory have in common: the settings that it was recorded with."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from . import storage
from .text import is_number, is_whole, printable, strict_json
from .trajectories import FLOATS, FORMAT, REMEDY, opened, verify
from .validate import MOST_VALUE, range_fault

HEADER = "trajectory.safetensors"
MOST_RUNS, MOST_STEPS = 10_000, 10_000


def write_header(folder: Path, settings: Mapping[str, object], tensors: Mapping[str, Tensor]) -> None:
    """What all runs of a recorded trajectory have in common. OSError as the system reports it."""
    folder.mkdir(parents=True, exist_ok=True)
    storage.write(folder / HEADER, tensors, {"format": FORMAT, "settings": json.dumps(settings)})


def read_header(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Settings and tensors as written: latent (B, C, *spatial) and sigmas (steps + 1,).

    Raises:
        ValueError: the folder holds no such thing; names the file, what is wrong and the remedy.
    """
    path = folder / HEADER
    with opened(path) as file:
        try:
            settings = strict_json(file.metadata.get("settings", ""))
            fault = _settings_fault(settings) or _header_fault(file.layout)
            if fault is None:
                tensors = {name: file.tensor(name) for name in ("latent", "sigmas")}
                fault = range_fault("latent", tensors["latent"], -MOST_VALUE, MOST_VALUE)
                fault = fault or range_fault("sigmas", tensors["sigmas"], 0.0, MOST_VALUE)
            if fault is None and (tensors["sigmas"].diff() >= 0).any():
                fault = "its sigmas do not fall"
            if fault:
                raise ValueError(fault)
        except ValueError as error:
            raise ValueError(f"{printable(path, None)}: its settings cannot be used: {error}{REMEDY}.") from error
        verify(path, file)
        return settings, tensors


def _header_fault(layout: Mapping[str, tuple[str, tuple[int, ...]]]) -> str | None:
    for name, low, high in (("latent", 2, 9), ("sigmas", 1, 1)):
        if name not in layout:
            return f"tensor {name} is missing"
        dtype, shape = layout[name]
        if dtype not in FLOATS or not low <= len(shape) <= high or 0 in shape:
            return f"tensor {name} has dtype {dtype} and shape {shape}"
    if not 2 <= layout["sigmas"][1][0] <= MOST_STEPS + 1:
        return f"it has {layout['sigmas'][1][0]} sigmas, not 2 to {MOST_STEPS + 1}"
    return None


def _settings_fault(settings: object) -> str | None:
    """What is wrong with a header's settings, or None. Unknown ones are no fault."""
    if not isinstance(settings, dict):
        return "they are no table"

    def texts(value: object) -> bool:
        return isinstance(value, list) and all(isinstance(each, str) for each in value)

    def wholes(value: object, most: int) -> bool:
        return isinstance(value, list) and all(is_whole(each, 0, most) for each in value)

    def text(value: object) -> bool:
        return isinstance(value, str)

    checks: dict[str, Callable[[Any], bool]] = {
        "key": text,
        "traits": lambda value: isinstance(value, dict),
        "cfg": lambda value: is_number(value, 0.0, 1e6),
        "sampler": text,
        "scheduler": text,
        "batch_index": lambda value: value is None or wholes(value, 2**31),
        "seeds": lambda value: wholes(value, 2**64) and 1 <= len(value) <= MOST_RUNS,
        "held_out": lambda value: is_whole(value, 0, MOST_RUNS),
        "prompts": texts,
        "full_model": text,
        "full_digest": text,
    }
    for name, right in checks.items():
        if name not in settings:
            return f"{name} is missing"
        if not right(settings[name]):
            return f"{name} is {printable(repr(settings[name]), 80)}, which cannot be"
    if len(settings["prompts"]) != len(settings["seeds"]) or settings["held_out"] >= len(settings["seeds"]):
        return "seeds, prompts and held_out do not fit together"
    return _traits_fault(settings["traits"])


def _traits_fault(traits: dict[str, Any]) -> str | None:
    checks: dict[str, Callable[[Any], bool]] = {
        "path": lambda value: value in ("ve", "flow"),
        "kind": lambda value: isinstance(value, str),
        "channels": lambda value: is_whole(value, 1, 4096),
        "latent_format": lambda value: isinstance(value, str),
        "sigma_min": lambda value: is_number(value, 0.0, MOST_VALUE),
        "sigma_max": lambda value: is_number(value, 0.0, MOST_VALUE),
    }
    if set(traits) != set(checks):
        return f"traits has {printable(sorted(traits), 200)} instead of {', '.join(checks)}"
    for name, right in checks.items():
        if not right(traits[name]):
            return f"{name} of traits is {printable(repr(traits[name]), 80)}, which cannot be"
    return None
