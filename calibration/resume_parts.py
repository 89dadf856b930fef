"""Results of parts of a calibration, kept so that an interrupted one can go on."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from ..core.run_means import RunMeans
from . import storage
from .measures import Measures
from .seen import MOST, MOST_MEASURE
from .text import printable
from .trial import Tried
from .validate import MOST_VALUE, dimension_fault, map_fault, range_fault

logger = logging.getLogger(__name__)
FORMAT = "gimbal.qdrift.part/2"
MOST_BYTES = 2**30


def save(path: Path, tensors: Mapping[str, Tensor], kind: str = FORMAT) -> None:
    """Whole or not at all; the folder is made. OSError as the system reports it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    storage.write(path, tensors, {"format": kind}, MOST_BYTES)


def load(
    path: Path,
    wanted: Mapping[str, tuple[str, tuple[int | str, ...]]],
    fault: Callable[[dict[str, Tensor]], str | None],
    kind: str = FORMAT,
    optional: tuple[str, ...] = (),
) -> dict[str, Tensor] | None:
    """Bit for bit what was saved; None if there is no such file.

    Args:
        wanted: dtype and dimensions of each tensor, where a letter stands for one number throughout.
        fault: what is wrong with the values, or None.
        optional: of wanted, what may be absent.
    Raises:
        ValueError: the file cannot be used; names it, what is wrong, and that it may be deleted.
    """
    if not path.exists():
        return None
    try:
        with storage.opened(path, MOST_BYTES) as file:
            if file.metadata.get("format") != kind:
                raise ValueError("it is of another version")
            file.verify(required=True)
            found = dimension_fault(file.layout, wanted, [name for name in wanted if name not in optional], {})
            if found is None and set(file.layout) - set(wanted):
                found = "it holds other tensors"
            if found is None:
                tensors = {name: file.tensor(name) for name in file.layout}
                found = fault(tensors)
            if found:
                raise ValueError(found)
            return tensors
    except ValueError as error:
        raise ValueError(
            f"{printable(path, None)}: a part kept for resuming cannot be used: {error}. It is made again; if this comes "
            f"back, delete the folder {printable(path.parent, None)}."
        ) from error


def load_map(path: Path, steps: int, channels: int) -> tuple[Tensor, Tensor] | None:
    """scale and shift of moment matching, (steps, channels) float64 each; otherwise as `load`."""
    wanted = ("F64", (steps, channels))
    found = load(path, {"scale": wanted, "shift": wanted}, lambda parts: map_fault(parts["scale"], parts["shift"]))
    return None if found is None else (found["scale"], found["shift"])


def load_layers(path: Path, shape: tuple[int, int]) -> RunMeans | None:
    """The layer correction's runs so far, (ranges, channels); otherwise as `load`."""

    def fault(found: dict[str, Tensor]) -> str | None:
        wrong = range_fault("mean", found["mean"], -MOST_VALUE, MOST_VALUE)
        return (
            wrong
            or range_fault("m2", found["m2"], 0.0, MOST_VALUE**2)
            or range_fault("count", found["count"], 1, 10**6)
        )

    wanted = {"count": ("I64", (1,)), "mean": ("F64", shape), "m2": ("F64", shape)}
    found = load(path, wanted, fault)
    return None if found is None else RunMeans.from_parts(int(found["count"]), found["mean"], found["m2"])


def load_error(path: Path) -> float | None:
    """A run's error under a candidate of the precision plan; otherwise as `load`."""
    found = load(path, {"error": ("F64", (1,))}, lambda parts: range_fault("error", parts["error"], 0.0, MOST_MEASURE))
    return None if found is None else float(found["error"])


def save_tried(path: Path, tried: Tried) -> None:
    """What a candidate gave on a held-out run."""
    measures = torch.tensor([tried.error, tried.distance], dtype=torch.float64, device="cpu")
    save(path, {"measures": measures, "seen": torch.stack(tried.seen)})


def load_tried(path: Path) -> Tried | None:
    """Otherwise as `load`."""

    def fault(found: dict[str, Tensor]) -> str | None:
        wrong = range_fault("measures", found["measures"], 0.0, MOST_MEASURE)
        for name, values in zip(Measures._fields, found["seen"], strict=True):
            low, high = MOST[name]
            wrong = wrong or range_fault(f"seen, {name}", values, low, high)
        return wrong

    found = load(path, {"measures": ("F64", (2,)), "seen": ("F64", (len(Measures._fields), "B"))}, fault)
    if found is None:
        return None
    error, distance = found["measures"].tolist()
    return Tried(error, distance, Measures(*found["seen"]))
