"""Safetensors files of ours: the one way to write a file whole, the one way to open one, and parts kept for a resume."""

from __future__ import annotations

import contextlib
import logging
import os
import uuid
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

import safetensors
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

logger = logging.getLogger(__name__)

MOST_HEADER = 2**24  # bytes of a safetensors header
PART = "gimbal.qdrift.part/1"  # format of a part


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A draft in the same folder to write to; it takes the place of `path` once the block has ended without an error.

    Raises:
        OSError: as the system reports it; what was at `path` is untouched, and no draft is left.
    """
    draft = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        yield draft
        with draft.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)


def tidy(folder: Path) -> None:
    """Remove the drafts that a process that was killed while it wrote has left."""
    for draft in folder.glob(".*.tmp"):
        draft.unlink(missing_ok=True)


def write(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
    """A safetensors file of any size, whole or not at all; its folder is made. OSError as the system reports it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as draft:
        try:
            save_file({name: value.contiguous() for name, value in tensors.items()}, draft, metadata)
        except safetensors.SafetensorError as error:
            raise OSError(f"{path} cannot be written: {error}") from error


@contextlib.contextmanager
def opened(path: Path, format: str, needed: Collection[str], what: str) -> Iterator[safe_open]:
    """A safetensors file of this format that has the needed tensors.

    Raises:
        ValueError: there is none, named; `what` it was to be, and has to be recorded again.
    """
    if not path.is_file():
        raise ValueError(f"{path} is missing; record the {what} again.")
    with path.open("rb") as file:
        header = int.from_bytes(file.read(8), "little")
    if header > MOST_HEADER:
        raise ValueError(f"{path}: no safetensors file (a header of {header} bytes); record it again.")
    try:
        mapped = safe_open(str(path), framework="pt")
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path}: no whole safetensors file ({error}); record it again.") from error
    with mapped as whole:
        found = (whole.metadata() or {}).get("format")
        if found != format or not set(needed) <= set(whole.keys()):
            raise ValueError(f"{path}: not a {what} of this version ({found!r:.80}); record it again.")
        yield whole


def save_part(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """The result of a part of a calibration, so that an interrupted one can go on. OSError as the system reports it."""
    write(path, tensors, {"format": PART})


def load_part(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor] | None:
    """Bit for bit what was saved; None, and a line in the log, if there is nothing that can be used."""
    if not path.is_file():
        return None
    try:
        with safe_open(str(path), framework="pt") as file:
            if (file.metadata() or {}).get("format") != PART:
                raise ValueError("not a part of this version")
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
        if {name: tuple(tensor.shape) for name, tensor in tensors.items()} != dict(shapes):
            raise ValueError("its tensors do not fit")
    except (safetensors.SafetensorError, ValueError) as error:
        logger.warning("%s: %s; doing that part again.", path, error)
        return None
    return tensors
