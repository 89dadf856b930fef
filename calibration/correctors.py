"""The corrections that a calibration can find and a sampling run can take, each by its name in the nodes and in files.

One entry here puts a correction into the nodes' lists, the trial on held-out runs and the files' checks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Beside = Literal["", "drift", "layers"]  # what moment matching's maps were found beside


@dataclass(frozen=True)
class Corrector:
    """What acts in it.

    Attributes:
        drift: Q-Drift's gain. layers: the layer correction. plan: nothing beside the precision plan, which acts under every
            correction of statistics that hold one.
        maps: moment matching, with the maps that were found beside this; None: no moment matching.
        tried: strengths that the trial on held-out runs tries.
        words: what it corrects, to stand behind its name in a sentence.
    """

    drift: bool = False
    layers: bool = False
    plan: bool = False
    maps: Beside | None = None
    tried: tuple[float, ...] = (1.0,)
    words: str = ""

    @property
    def parts(self) -> int:
        """How many methods act in it."""
        return self.drift + self.layers + (self.maps is not None)


DRIFT, MOMENTS, BOTH, LAYERS, LAYERS_AND_MOMENTS = "drift", "moments", "both", "layers", "layers and moments"
PLAN = "plan"
CORRECTORS = {
    DRIFT: Corrector(drift=True, words="error that acts as noise"),
    MOMENTS: Corrector(maps="", tried=(0.5, 1.0), words="each channel's mean and contrast"),
    BOTH: Corrector(drift=True, maps="drift", words="noise, and each channel's mean and contrast"),
    LAYERS: Corrector(layers=True, words="each layer's mean error, inside the network"),
    LAYERS_AND_MOMENTS: Corrector(layers=True, maps="layers", words="each layer's mean error, then each channel's"),
    PLAN: Corrector(plan=True, words="unrounded activations where they count most"),
}


def found(maps: bool, layers: bool, plan: bool = False) -> list[str]:
    """Names of the corrections that a calibration finds which matches moments or not, corrects layers or not, has found a
    precision plan or not."""
    return [
        name
        for name, kind in CORRECTORS.items()
        if (maps or kind.maps is None) and (layers or not kind.layers) and (plan or not kind.plan)
    ]


def map_names(beside: Beside) -> tuple[str, str]:
    """The statistics' fields that hold these maps: scale, shift."""
    suffix = f"_{beside}" if beside else ""
    return f"state_scale{suffix}", f"state_shift{suffix}"
