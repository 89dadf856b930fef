"""What the calibrating nodes have in common beside their inputs: checks before, files and pictures after."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

from comfy_api.latest import io, ui

from ...calibration.trajectories import Store
from ...core.qdrift import doubles
from . import calibration
from .. import identity, qdrift_folder
from ...nodes import _calibrating
from .calibration import Calibration
from ..correction import BOTH, MOMENTS
from ..pictures.report import picture
from .twins import Traits, check_plain

logger = logging.getLogger(__name__)


def outputs() -> list[io.Output]:
    return [
        _calibrating.Statistics.Output(display_name="stats"),
        io.Image.Output(display_name="report"),
        io.String.Output(display_name="path"),
    ]


def checked(node: str, name: str, model: Any) -> Traits:
    check_plain(node, name, model)
    return Traits.of(node, name, model)


def unique_id(cls: type[io.ComfyNode]) -> str | None:
    return cls.hidden.unique_id if cls.hidden is not None else None


def name_of(cls: type[io.ComfyNode], model: Any, name: str) -> str:
    graph = cls.hidden.prompt if cls.hidden is not None else None
    return identity.model_name(model, graph, unique_id(cls), name)


def finish(
    cls: type[io.ComfyNode], calibration: Calibration, results: list, store: Store, filename: str, **origin: str
):
    """Match moments and try the corrections, as asked for; then write what was found, and show it."""
    trim = f"{calibration.trim:g}" if calibration.trim else ""
    found = calibration.statistics(
        results, calibration.twins.traits, calibration.schedule, calibration.runs, trim=trim, **origin
    )
    maps = calibration.maps(found)
    if maps:
        parts = [part.float() for kind in (MOMENTS, BOTH) for part in maps[kind]]
        names = ("state_scale", "state_shift", "state_scale_drift", "state_shift_drift")
        levels = doubles(calibration.step_levels())
        found = replace(found, state_sigma=levels, **dict(zip(names, parts, strict=True)))
    found = replace(found, trial=calibration.trial(found, store))
    path = qdrift_folder.save(found, filename)
    calibration.clear()
    logger.info("%s: wrote %s. %s", cls.NAME, path, found.verdict())
    image = picture(found, calibration.residuals(results))
    return io.NodeOutput(found, image, str(path), ui=ui.PreviewImage(image, cls=cls))
