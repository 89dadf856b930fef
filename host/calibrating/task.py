"""What all parts of one calibration work with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ...calibration.correctors import CORRECTORS, found
from ...calibration.found_plan import FoundPlan
from ...calibration.trial import PLAIN
from ...core.plan import Plan
from ..acting_plan import ActingPlan, Around
from ..correction import REFUSE
from ..sampling.stages import Window
from .model_pair import ModelPair
from .recording import Progress
from .resume import Resume
from .sampling_runs import CalibrationRun, Schedule

DRIFT_ALONE, DRIFT_AND_MOMENTS = "drift", "drift and moments"
CALIBRATED = (DRIFT_AND_MOMENTS, DRIFT_ALONE)  # what a calibration can find
# How corrections are tried, and moments matched beside Q-Drift: as the nodes stand by default.
CALIBRATED_OPTIONS: dict[str, Any] = {
    "strength": 1.0,
    "channels": "scalar",
    "rule": "auto",
    "variance": "conditional",
    "bias": "off",
    "unsupported": REFUSE,
    "window": Window(0.0, 1.0),
}


@dataclass(frozen=True)
class Settings:
    """What a calibration finds, and how.

    Attributes:
        correction: one of CALIBRATED.
        held_out: how many of the runs, the last ones, are kept aside to try corrections on.
        trim: elements of the error further than this many standard deviations from its mean are left out; None: none.
        layers: whether a layer correction is looked for.
        budget: share of the rounded layers' multiply-adds that a precision plan may take; 0: none is looked for.
        planned: whether one was found.
        interleaved: the two models by turns, run by run, instead of one after the other.
    """

    correction: str
    held_out: int
    trim: float | None = None
    interleaved: bool = False
    layers: bool = False
    budget: float = 0.0
    planned: bool = False

    @property
    def correctors(self) -> list[str]:
        """Names of the corrections that are found."""
        return found(maps=self.correction == DRIFT_AND_MOMENTS, layers=self.layers, plan=self.planned)

    @property
    def candidates(self) -> tuple[tuple[str, float], ...]:
        """What is tried on held-out runs: a correction and its strength."""
        return (PLAIN, 0.0), *((name, each) for name in self.correctors for each in CORRECTORS[name].tried)

    def model_runs(self, fitted: int) -> int:
        """Whole runs of the quantized model, for so many runs to measure."""
        loops = sum(CORRECTORS[name].maps is not None for name in self.correctors) + self.layers
        return fitted * (1 + loops) + self.held_out * len(self.candidates)


@dataclass(frozen=True, eq=False)
class Task:
    """One calibration.

    Attributes:
        runs, held_out: those to measure, and those to try corrections on.
        plan: the sampler's steps; None where it has no corrected form and none is needed.
        precision: the precision plan under which everything is found; None: none.
    """

    node: str
    models: ModelPair
    schedule: Schedule
    runs: tuple[CalibrationRun, ...]
    held_out: tuple[CalibrationRun, ...]
    settings: Settings
    plan: Plan | None
    resume: Resume
    progress: Progress
    precision: FoundPlan | None = None

    @property
    def inside(self) -> Around | None:
        """For `around_network`: what the precision plan does in a call of the quantized model."""
        return None if self.precision is None else ActingPlan(self.precision.plan)
