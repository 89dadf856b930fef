"""Statistics of several calibrations put together: what becomes of each part."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from . import found_plan, layer_fields
from .levels import levels, same_levels
from .moment_stack import merged, stacked
from .provenance import Provenance
from .trial import Trial

if TYPE_CHECKING:
    from .statistics import QDriftStatistics


def merged_fields(parts: Sequence[QDriftStatistics]) -> dict[str, Any]:
    """What `QDriftStatistics` takes, of two parts or more.

    Raises:
        ValueError: sigmas, models, settings or plans differ (named); or a run is in two parts.
    """
    first = parts[0]
    provenance = Provenance.merged([part.provenance for part in parts])
    for other in parts[1:]:
        if not same_levels(first.sigma, other.sigma):
            differ = f"{levels(first.sigma)} and {levels(other.sigma)}"
            raise ValueError(f"sigma differs: {differ}; merge calibrations of one schedule.")
    plan = found_plan.merged([part.plan for part in parts])
    alone = [part.run_variance for part in parts if part.run_variance is not None]
    layers = layer_fields.merged([(part.layers, part.provenance.runs) for part in parts])
    trial = Trial.merged([part.trial for part in parts], layers is not None, plan is not None)
    count, mean, m2 = stacked(merged([[part.moments(i) for i in range(len(part.sigma))] for part in parts]))
    return {
        "sigma": first.sigma,
        "count": count,
        "mean": mean,
        "m2": m2,
        "provenance": provenance,
        "run_variance": torch.cat(alone) if len(alone) == len(parts) else None,
        "layers": layers,
        "plan": plan,
        "trial": trial,
    }
