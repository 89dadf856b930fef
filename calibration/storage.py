"""Safetensors files of ours: written whole or not at all, and read only where nothing in them is damaged.

A checksum over the whole file stands in its metadata. It is written as zeros, the digest is taken, and then put in their
place; to verify, the digest is taken with zeros there again.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import safetensors
from safetensors.torch import save_file
from torch import Tensor

from .text import printable, strict_json

MOST_HEADER = 2**20  # bytes
CHECKSUM = "checksum"
KIND = {"checksum_kind": "blake2b-256 of the whole file, with zeros in its place"}
_BLANK = b"0" * 64
_PLACE = re.compile(rb'"checksum"\s*:\s*"([0-9a-f]{64})"')
_CHUNK = 2**20


def size_fault(header: int, total: int, most: int | None = None) -> str | None:
    """Why a safetensors file of this many header and total bytes is not worth opening, or None."""
    if not 2 <= header <= total - 8:
        return f"this is no safetensors file, or one cut short: {total} bytes, with a header of {header}"
    if header > MOST_HEADER:
        return f"its header has {header} bytes, more than the {MOST_HEADER} allowed"
    if most is not None and total > most:
        return f"it has {total} bytes, more than the {most} allowed"
    return None


def name_fault(path: Path) -> str | None:
    """Why safetensors cannot open a file of this name, or None. It takes names that are UTF-8 alone."""
    try:
        str(path).encode("utf-8")
    except UnicodeEncodeError:
        return "its name is no text, so that safetensors cannot open it; rename the file or its folder"
    return None


def write(
    path: Path,
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str],
    most: int | None = None,
    replace: bool = True,
) -> None:
    """Write a whole file or none: under another name in the same folder, then under its own.

    Args:
        most: bytes that the file may have.
        replace: whether a file of that name is replaced. If not, and two processes write at once, one of them gets the
            name and the other one FileExistsError.
    Raises:
        ValueError: the file would be too large to be read again, or has a name under which it cannot be.
        FileExistsError: the name is taken and replace is False.
        OSError: the folder is missing, full or closed to us; what was there is untouched.
    """
    fault = name_fault(path)
    if fault:
        raise ValueError(f"{printable(path, None)}: {fault}.")
    draft = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    whole = {name: tensor.contiguous() for name, tensor in tensors.items()}
    try:
        save_file(whole, draft, {**metadata, **KIND, CHECKSUM: _BLANK.decode()})
        with draft.open("rb+") as file:
            fault = size_fault(int.from_bytes(file.read(8), "little"), draft.stat().st_size, most)
            if fault:
                raise ValueError(f"{printable(path)}: {fault}; keep fewer sigmas or runs, or shorter texts.")
            place, found = _digest(file)
            file.seek(place)
            file.write(found)
            file.flush()
            os.fsync(file.fileno())
        if replace:
            os.replace(draft, path)
        else:
            claim(draft, path)
    except safetensors.SafetensorError as error:
        raise OSError(f"{printable(path)} cannot be written: {printable(error)}") from error
    finally:
        draft.unlink(missing_ok=True)


def claim(draft: Path, path: Path) -> None:
    """Give a file its name if nothing has it, as one step. FileExistsError if something has; the draft may stay."""
    if os.name == "nt":
        os.rename(draft, path)  # refuses a name that is taken, unlike elsewhere
        return
    try:
        os.link(draft, path)
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links: the name first, empty for a moment
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        os.replace(draft, path)


@dataclass(frozen=True, eq=False)
class Opened:
    """A file whose header was read, and of which nothing is known to be damaged."""

    metadata: dict[str, str]
    layout: dict[str, tuple[str, tuple[int, ...]]]  # dtype, such as "F32", and shape of each tensor
    _path: Path
    _file: Any  # safetensors.safe_open, whose types its versions state differently

    def tensor(self, name: str) -> Tensor:
        """A copy: what safetensors returns is mapped to the file, which may change or be removed."""
        found: Tensor = self._file.get_tensor(name)
        return found.clone()

    def rows(self, name: str) -> Iterator[Tensor]:
        """One after the other along the first dimension, so that one of them is in memory."""
        part = self._file.get_slice(name)
        for i in range(self.layout[name][1][0]):
            yield part[i : i + 1][0].clone()

    def verify(self, required: bool) -> None:
        """ValueError if the file is not as it was written, or has no checksum and that is required."""
        if CHECKSUM not in self.metadata:
            if required or not KIND.keys().isdisjoint(self.metadata):
                raise ValueError("it has no checksum")
            return
        with self._path.open("rb") as file:
            if _digest(file)[1] != self.metadata[CHECKSUM].encode():
                raise ValueError("it is damaged: its checksum is not that of its contents")


@contextlib.contextmanager
def opened(path: Path, most: int | None = None) -> Iterator[Opened]:
    """A safetensors file of at most so many bytes, header checked, contents not yet read.

    Raises:
        ValueError: what is wrong, without path and remedy.
        FileNotFoundError, PermissionError: as the system reports them.
    """
    metadata = _header(path, most)
    try:
        with safetensors.safe_open(str(path), framework="pt") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            layout = {name: (part.get_dtype(), tuple(part.get_shape())) for name, part in slices.items()}
            yield Opened(metadata, layout, path, file)
    except safetensors.SafetensorError as error:
        raise ValueError(f"this is no whole safetensors file ({printable(error)})") from error


def _header(path: Path, most: int | None) -> dict[str, str]:
    """The metadata. safetensors reads the header as well, but takes the last of names that stand twice."""
    total = path.stat().st_size
    if not path.is_file():
        raise ValueError("this is a folder or a device, not a file")
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        fault = name_fault(path) or size_fault(size, total, most)
        if fault:
            raise ValueError(fault)
        data = file.read(size)
    try:
        fields = strict_json(data.decode("utf-8"))
    except ValueError as error:
        raise ValueError(
            f"this is no whole safetensors file: its header cannot be read ({printable(error)})"
        ) from None
    metadata = fields.get("__metadata__", {}) if isinstance(fields, dict) else None
    if not isinstance(metadata, dict) or not all(isinstance(text, str) for text in metadata.values()):
        raise ValueError("this is no whole safetensors file: its header is no table of tensors and texts")
    return metadata


def _digest(file: BinaryIO) -> tuple[int, bytes]:
    """Where in the file the checksum stands, and what it has to be."""
    file.seek(0)
    length = file.read(8)
    header = file.read(int.from_bytes(length, "little"))
    found = _PLACE.search(header)
    if found is None:
        return 0, b""
    state = hashlib.blake2b(length, digest_size=32)
    state.update(header[: found.start(1)] + _BLANK + header[found.end(1) :])
    while chunk := file.read(_CHUNK):
        state.update(chunk)
    return len(length) + found.start(1), state.hexdigest().encode()
