"""Results of parts of a calibration, kept so that an interrupted one can go on."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

import safetensors
from safetensors import safe_open
from torch import Tensor

from .trajectories import write_whole

logger = logging.getLogger(__name__)
FORMAT = "gimbal.qdrift.part/1"


def save(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Whole or not at all. OSError as the system reports it."""
    write_whole(path, tensors, {"format": FORMAT})


def load(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor] | None:
    """Bit for bit what was saved; None, and a line in the log, if there is nothing that can be used."""
    if not path.is_file():
        return None
    try:
        with safe_open(str(path), framework="pt") as file:
            if (file.metadata() or {}).get("format") != FORMAT:
                raise ValueError("not a part of this version")
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
        if {name: tuple(tensor.shape) for name, tensor in tensors.items()} != dict(shapes):
            raise ValueError("its tensors do not fit")
    except (safetensors.SafetensorError, ValueError) as error:
        logger.warning("%s: %s; doing that part again.", path, error)
        return None
    return tensors
