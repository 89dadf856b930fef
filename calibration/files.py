"""Reading and writing the statistics file. Nothing in a file is trusted, nothing half written is left."""

from __future__ import annotations

from pathlib import Path

import safetensors
import safetensors.torch
from torch import Tensor

from . import storage
from .validate import LAYOUT, layout_fault, value_fault

FORMAT = "gimbal.qdrift/1"
MOST_HEADER = 2**20
MOST_BYTES = 2**28
REMEDY = "; copy the file again, or calibrate again."


def size_fault(header: int, total: int) -> str | None:
    """Why a safetensors file of this many header and total bytes is not worth opening, or None."""
    if not 2 <= header <= total - 8:
        return f"this is no safetensors file, or one cut short: {total} bytes, with a header of {header}"
    if header > MOST_HEADER:
        return f"its header has {header} bytes, more than the {MOST_HEADER} allowed"
    if total > MOST_BYTES:
        return f"it has {total} bytes, more than the {MOST_BYTES} allowed"
    return None


def write(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write a whole file or none: under another name in the same folder, then renamed over what was there.

    Raises:
        ValueError: the file would be too large for `read`.
        OSError: the folder is missing, full or closed to us; what was there is untouched.
    """
    data = safetensors.torch.save(
        {name: tensor.contiguous() for name, tensor in tensors.items()}, {"format": FORMAT, **metadata}
    )
    fault = size_fault(int.from_bytes(data[:8], "little"), len(data))
    if fault:
        raise ValueError(f"{path}: {fault}; keep fewer sigmas or runs, or shorter texts.")
    with storage.replacing(path) as draft:
        draft.write_bytes(data)


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The known tensors and all metadata of a version 1 file; tensors are checked, other tensors are not read.

    Raises:
        ValueError: what is wrong, without the path.
        FileNotFoundError, PermissionError: as the system reports them.
    """
    total = path.stat().st_size
    if not path.is_file():
        raise ValueError("this is a folder or a device; choose a file.")
    with path.open("rb") as file:
        _refuse(size_fault(int.from_bytes(file.read(8), "little"), total))
    try:
        with safetensors.safe_open(str(path), framework="pt") as file:
            metadata = file.metadata() or {}
            _check_format(metadata.get("format"))
            slices = {name: file.get_slice(name) for name in file.keys() if name in LAYOUT}  # noqa: SIM118
            layout = {name: (part.get_dtype(), tuple(part.get_shape())) for name, part in slices.items()}
            _refuse(layout_fault(layout, _number(metadata, "latent_channels"), _number(metadata, "runs")))
            # Copies: what safetensors returns is mapped to the file, which may change or be removed.
            tensors = {name: file.get_tensor(name).clone() for name in slices}
    except safetensors.SafetensorError as error:
        raise ValueError(f"this is no whole safetensors file ({error}){REMEDY}") from error
    _refuse(value_fault(tensors))
    return tensors, metadata


def _refuse(fault: str | None) -> None:
    if fault:
        raise ValueError(f"{fault}{REMEDY}")


def _check_format(found: str | None) -> None:
    if found == FORMAT:
        return
    name, _, version = (found or "").partition("/")
    if name == FORMAT.partition("/")[0] and version.isdecimal() and len(version) <= 9 and int(version) > 1:
        raise ValueError(f"its format {found} is newer than this Gimbal knows ({FORMAT}); update Gimbal.")
    raise ValueError(
        f"its format is {found!r:.80}, not {FORMAT}: these are no Q-Drift statistics; choose another file."
    )


def _number(metadata: dict[str, str], name: str) -> int:
    text = metadata.get(name, "")
    if not text.isdecimal() or len(text) > 9:
        _refuse(f"{name} is {text!r:.80} in the metadata, not a whole number")
    return int(text)
