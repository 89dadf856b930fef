"""What nodes have written in this session of ComfyUI, so that a file that was deleted since is written again.

ComfyUI does not execute a node again whose inputs are the same, even if its file is gone. A node that writes adds
`losses` to its fingerprint: how many of the files written for these inputs have gone missing so far. It rises when a file is
deleted, and stays as it is when the file is written again. The notes lie in ComfyUI's temp folder, which lives as
long as its cache does.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path

import folder_paths

from ..calibration.text import shown, strict_json
from . import identity

logger = logging.getLogger(__name__)
PLAIN = (str, int, float, bool)  # what stands in a widget


def note(node: str, inputs: Mapping[str, object], path: Path) -> None:
    """Remember that a node wrote this file or folder for these inputs. What cannot be noted is said in the log."""
    widgets = {name: value for name, value in inputs.items() if isinstance(value, PLAIN)}
    place = _home() / f"{identity.digest(node, widgets, str(path))}.json"
    lost = 0
    try:
        before = _read(place)
        if before is not None:
            lost = before["lost"] + (not before["there"])
        _home().mkdir(parents=True, exist_ok=True)
        entry = {"node": node, "widgets": widgets, "path": str(path), "lost": lost}
        draft = place.with_suffix(f".{os.getpid()}.tmp")
        draft.write_text(json.dumps(entry), encoding="ascii")
        os.replace(draft, place)
    except OSError as error:
        logger.warning("%s: a note of what it wrote cannot be kept (%s).", node, shown(error))


def losses(node: str, widgets: Mapping[str, object]) -> int:
    """Files that this node wrote for inputs with these widgets and that have been deleted since, one by one."""
    widgets = {name: value for name, value in widgets.items() if isinstance(value, PLAIN)}
    found = [_read(place) for place in sorted(_home().glob("*.json"))]
    return sum(
        entry["lost"] + (not entry["there"])
        for entry in found
        if entry is not None
        and entry["node"] == node
        and all(entry["widgets"].get(name) == value for name, value in widgets.items())
    )


def _home() -> Path:
    return Path(folder_paths.get_temp_directory()) / "gimbal_qdrift"


def _read(place: Path) -> dict | None:
    """A note, and whether its file is still as it was; None if there is none."""
    try:
        entry = strict_json(place.read_text(encoding="ascii"))
        return {**entry, "lost": int(entry["lost"]), "there": os.path.lexists(entry["path"])}
    except (OSError, ValueError, TypeError, KeyError):
        return None
