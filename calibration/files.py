"""Reading and writing the statistics file. Nothing in a file is trusted, nothing half written is left."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from torch import Tensor

from . import storage
from .validate import LAYOUT, layout_fault, value_fault

FORMAT = "gimbal.qdrift/1"
MOST_BYTES = 2**28
REMEDY = "; copy the file again, or calibrate again."


def as_path(where: str, path: object) -> Path:
    """ValueError, by the caller's name, where path is no name of a file."""
    if not isinstance(path, str | os.PathLike) or "\0" in str(path):
        raise ValueError(f"{where}: path is {path!r:.80}; pass the name of a file.")
    return Path(path)


def write(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str], replace: bool = True) -> None:
    """Write a whole file or none, as `storage.write` does, of a size that `read` takes.

    Raises:
        ValueError: the file would be too large for `read`.
        FileExistsError: the name is taken and replace is False.
        OSError: the folder is missing, full or closed to us; what was there is untouched.
    """
    storage.write(path, tensors, {"format": FORMAT, **metadata}, MOST_BYTES, replace)


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The known tensors and all metadata of a version 1 file; tensors are checked, other tensors are not read.

    Raises:
        ValueError: what is wrong, without the path.
        FileNotFoundError, PermissionError: as the system reports them.
    """
    try:
        with storage.opened(path, MOST_BYTES) as file:
            _check_format(file.metadata.get("format"))
            layout = {name: what for name, what in file.layout.items() if name in LAYOUT}
            numbers = (_number(file.metadata, name) for name in ("latent_channels", "runs"))
            _refuse(layout_fault(layout, *numbers))
            tensors = {name: file.tensor(name) for name in layout}
            _refuse(value_fault(tensors))
            file.verify(required=False)  # earlier versions wrote none
            return tensors, file.metadata
    except _OtherFormat:
        raise
    except ValueError as error:
        raise ValueError(f"{error}{REMEDY}") from error


def digest(path: Path) -> str:
    """Of the file's contents, read piece by piece; of its size alone where `read` would refuse it for that.

    Raises:
        OSError: as the system reports it.
    """
    size = path.stat().st_size
    if size > MOST_BYTES or not path.is_file():
        return f"{size} bytes"
    state = hashlib.blake2b()
    with path.open("rb") as file:
        while chunk := file.read(2**20):
            state.update(chunk)
    return state.hexdigest()


class _OtherFormat(ValueError):
    """Has a remedy of its own."""


def _refuse(fault: str | None) -> None:
    if fault:
        raise ValueError(fault)


def _check_format(found: str | None) -> None:
    if found == FORMAT:
        return
    name, _, version = (found or "").partition("/")
    if name == FORMAT.partition("/")[0] and version.isdecimal() and len(version) <= 9 and int(version) > 1:
        raise _OtherFormat(f"its format {found} is newer than this Gimbal knows ({FORMAT}); update Gimbal.")
    raise _OtherFormat(
        f"its format is {found!r:.80}, not {FORMAT}: these are no Q-Drift statistics; choose another file."
    )


def _number(metadata: dict[str, str], name: str) -> int:
    text = metadata.get(name, "")
    if not (text.isascii() and text.isdecimal()) or len(text) > 9:
        raise ValueError(f"{name} is {text!r:.80} in the metadata, not a whole number")
    return int(text)
