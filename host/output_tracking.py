"""What nodes have written in this session of ComfyUI, so that a file that was deleted since is written again.

ComfyUI does not execute a node again whose inputs are the same, even if its file is gone. A node that writes adds
`deleted_count` to its fingerprint: how many of the files written for these inputs have gone missing so far. It rises when a file is
deleted, and stays as it is when the file is written again. The notes lie in ComfyUI's temp folder, which lives as
long as its cache does.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import folder_paths

from ..calibration.text import printable, strict_json
from . import identity

logger = logging.getLogger(__name__)
PLAIN = (str, int, float, bool)  # what stands in a widget


def note(node: str, inputs: Mapping[str, object], path: Path, before: int) -> None:
    """Remember that a node wrote this file for these inputs. What cannot be noted is said in the log.

    Args:
        before: `deleted_count` of the same inputs before the file was written, which `deleted_count` gives again from now on.
    """
    widgets = _widgets(inputs)
    place = _home() / f"{identity.digest(node, widgets, str(path))}.json"
    others = sum(lost for each, lost in _noted(node, widgets) if each != place)
    entry = {"node": node, "widgets": widgets, "path": str(path), "lost": max(0, before - others)}
    draft = place.with_suffix(f".{os.getpid()}.tmp")
    try:
        _home().mkdir(parents=True, exist_ok=True)
        draft.write_text(json.dumps(entry), encoding="ascii")
        os.replace(draft, place)
    except OSError as error:
        logger.warning("%s: a note of what it wrote cannot be kept (%s).", node, printable(error))


def deleted_count(node: str, inputs: Mapping[str, object]) -> int:
    """How many times files that this node wrote for inputs with these widgets were deleted."""
    return sum(lost for _, lost in _noted(node, _widgets(inputs)))


def _widgets(inputs: Mapping[str, object]) -> dict[str, object]:
    return {name: value for name, value in inputs.items() if isinstance(value, PLAIN)}


def _noted(node: str, widgets: Mapping[str, object]) -> Iterator[tuple[Path, int]]:
    """Notes whose inputs have these widgets, and the deleted_count of each."""
    for place in _home().glob("*.json"):
        try:
            entry = strict_json(place.read_text(encoding="ascii"))
            same = entry["node"] == node and all(
                entry["widgets"].get(name) == value for name, value in widgets.items()
            )
            lost = int(entry["lost"]) + (not os.path.lexists(entry["path"]))
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            continue  # no note of ours
        if same:
            yield place, lost


def _home() -> Path:
    return Path(folder_paths.get_temp_directory()) / "gimbal_qdrift"
