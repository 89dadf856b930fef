"""The end of a calibration: what was found is saved and drawn."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from ...calibration import report
from ...calibration.statistics import QDriftStatistics
from ...calibration.text import printable
from ...calibration.verdict import verdict
from .. import qdrift_folder
from ..pictures.card import card
from ..pictures.report import picture
from .calibration import Calibration

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class CalibrationResult:
    """A calibration's result."""

    statistics: QDriftStatistics
    card: Tensor  # the verdict, and
    plots: Tensor  # the report: (1, height, width, 3) in [0, 1]
    path: Path


def finish(calibration: Calibration, statistics: QDriftStatistics, filename: str) -> CalibrationResult:
    """Write the statistics to models/qdrift, forget what was kept for a resume, and draw the report."""
    path = qdrift_folder.save(statistics, filename)
    calibration.forget()
    found = verdict(statistics)
    logger.info(
        "%s: wrote %s. %s %s", calibration.task.node, printable(path, None), found.line, report.verdict(statistics)
    )
    calibration.task.progress.end_with(found.line)
    return CalibrationResult(statistics, card(found, path), picture(statistics, calibration.residuals), path)
