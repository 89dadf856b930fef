"""The end of a calibration: what was found is completed, saved and drawn."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from ...calibration import report
from ...calibration.collect import RunMoments
from ...calibration.statistics import QDriftStatistics
from ...calibration.text import shown
from ...calibration.trajectories import InFolder
from ...core.shapes import doubles
from .. import qdrift_folder
from ..correction import BOTH, MOMENTS
from ..pictures.report import picture
from .calibration import Calibration, residuals, statistics

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Finished:
    """A calibration's result."""

    statistics: QDriftStatistics
    picture: Tensor  # (1, height, width, 3) in [0, 1]
    path: Path


def finish(
    calibration: Calibration, results: list[RunMoments], store: InFolder, filename: str, **origin: str
) -> Finished:
    """Match moments and try the corrections, as asked for; then write what was found, and draw it."""
    trim = f"{calibration.trim:g} per element" if calibration.trim else ""  # once whole positions went
    found = statistics(results, calibration.twins.traits, calibration.schedule, calibration.runs, trim=trim, **origin)
    maps = calibration.maps(found)
    if maps:
        scale, shift, scale_drift, shift_drift = (part.float() for kind in (MOMENTS, BOTH) for part in maps[kind])
        found = replace(
            found,
            state_sigma=doubles(calibration.step_levels()),
            state_scale=scale,
            state_shift=shift,
            state_scale_drift=scale_drift,
            state_shift_drift=shift_drift,
        )
    found = replace(found, trial=calibration.trial(found, store))
    path = qdrift_folder.save(found, filename)
    calibration.resume.clear()
    logger.info("%s: wrote %s. %s", calibration.node, shown(path, None), report.verdict(found))
    return Finished(found, picture(found, residuals(results)), path)
