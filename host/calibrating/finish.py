"""The end of a calibration: what was found is saved and drawn."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from ...calibration import report
from ...calibration.statistics import QDriftStatistics
from ...calibration.text import printable
from ...calibration.verdict import Outcome, Verdict, verdict
from .. import qdrift_folder
from ..pictures.card import card
from ..pictures.report import picture
from .calibration import Calibration
from .self_reference import rounds_activations

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
    found = _with_hint(calibration, verdict(statistics))
    words = f"{found.line} {report.verdict(statistics)} {found.next_step}"
    logger.info("%s: wrote %s. %s", calibration.task.node, printable(path, None), words)
    calibration.task.progress.end_with(found.line)
    return CalibrationResult(statistics, card(found, path), picture(statistics, calibration.residuals), path)


def _with_hint(calibration: Calibration, found: Verdict) -> Verdict:
    """Where there is damage that a precision plan could lessen, and none was looked for, that is said."""
    damaged = found.outcome in (Outcome.HELPS, Outcome.CANNOT)
    if calibration.task.settings.budget or not damaged or not rounds_activations(calibration.task.models.quantized):
        return found
    hint = "This model rounds activations: with budget 0.1 a precision plan can take more of the error away."
    return replace(found, next_step=f"{found.next_step} {hint}")
