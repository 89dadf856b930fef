"""Moments of one run, gathered call by call, and kept on disk so that an interrupted calibration can go on."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from . import resume_parts
from .levels import SIGMA_TOLERANCE
from .moments import JointMoments, StateMoments
from .residual import BINS, Residual
from .validate import MOST_COUNT, MOST_VALUE, derived_variance, range_fault, value_fault

FORMAT = "gimbal.qdrift.run/3"
Part = TypeVar("Part")
STATE = ("state_count", "state_mean", "state_m2")


@dataclass
class RunMoments:
    """What one paired run gave at each noise level at which its sampler called the model.

    Samplers of higher order call the model several times at one level (heun's corrector) or between the schedule's
    levels (dpm_2). Calls at one level are pooled; a level between two of the schedule is a level of its own.
    """

    channels: int
    trim: float | None = None
    levels: list[float] = field(default_factory=list)
    moments: list[JointMoments] = field(default_factory=list)
    residuals: list[Residual] = field(default_factory=list)
    states: list[StateMoments] = field(default_factory=list)  # full precision's, after each step

    def add_state(self, x: Tensor) -> None:
        """Take in the state that full precision's next step ends in, (B, C, *spatial). ValueError for NaN."""
        moments = StateMoments(self.channels)
        moments.update(x)
        self.states.append(moments)

    def add(self, sigma: float, x: Tensor, denoised: Tensor, denoised_hat: Tensor) -> None:
        """Take in one call: the state, and both models' predictions of x0 at it, (B, C, *spatial) on the CPU.

        The model's output is (x - denoised)/sigma: eps, or the velocity of a flow (METHODS.md section 4.1).

        Raises:
            ValueError: wrong shapes, NaN, or trim leaves nothing.
        """
        if sigma == 0.0:
            return  # no step starts there, and eps is not defined
        error = (denoised.double() - denoised_hat.double()) / sigma  # eps_hat - eps
        output = (x.double() - denoised_hat.double()) / sigma
        part = JointMoments(self.channels)
        part.update(output, error, self.trim)
        place = self._place(sigma)
        self.moments[place] = self.moments[place].merge(part)
        self.residuals[place] = self.residuals[place] + Residual.of(output, error, part)

    def relative_errors(self) -> list[float]:
        """At each level, of all channels together."""
        return [float(moments.pooled().relative_error()) for moments in self.moments]

    def _place(self, sigma: float) -> int:
        for i, level in enumerate(self.levels):
            if same_level(level, sigma):
                return i
            if level < sigma:
                break
        else:
            i = len(self.levels)
        self.levels.insert(i, sigma)
        self.moments.insert(i, JointMoments(self.channels))
        self.residuals.insert(i, Residual.empty(self.channels))
        return i

    def save(self, path: Path) -> None:
        """Whole or not at all. OSError as the system reports it."""
        tensors = {
            "sigma": torch.tensor(self.levels, dtype=torch.float64),
            "count": torch.tensor([moments.count for moments in self.moments], dtype=torch.int64),
            "mean": torch.stack([moments.mean for moments in self.moments]),
            "m2": torch.stack([moments.m2 for moments in self.moments]),
            "fourth": torch.stack([residual.fourth for residual in self.residuals]),
            "residual_count": torch.stack([residual.count for residual in self.residuals]),
            "histogram": torch.stack([residual.histogram for residual in self.residuals]),
        }
        if self.states:
            tensors["state_count"] = torch.tensor([moments.count for moments in self.states], dtype=torch.int64)
            tensors["state_mean"] = torch.stack([moments.mean for moments in self.states])
            tensors["state_m2"] = torch.stack([moments.m2 for moments in self.states])
        resume_parts.save(path, tensors, FORMAT)

    @classmethod
    def load(cls, path: Path, channels: int, trim: float | None = None) -> RunMoments:
        """Bit for bit what was saved. ValueError if it cannot be used; FileNotFoundError if there is none."""
        wanted = {
            "sigma": ("F64", ("S",)),
            "count": ("I64", ("S",)),
            "mean": ("F64", ("S", 2, channels)),
            "m2": ("F64", ("S", 3, channels)),
            "fourth": ("F64", ("S", channels)),
            "residual_count": ("I64", ("S", channels)),
            "histogram": ("I64", ("S", BINS)),
            "state_count": ("I64", ("T",)),
            "state_mean": ("F64", ("T", channels)),
            "state_m2": ("F64", ("T", channels)),
        }
        tensors = resume_parts.load(path, wanted, _fault, FORMAT, optional=STATE)
        if tensors is None:
            raise FileNotFoundError(path)
        moments = _each(JointMoments.from_parts, tensors, "count", "mean", "m2")
        residuals = _each(Residual, tensors, "residual_count", "fourth", "histogram")
        states = _each(StateMoments.from_parts, tensors, *STATE) if STATE[0] in tensors else []
        return cls(channels, trim, tensors["sigma"].tolist(), moments, residuals, states)


def _each(make: Callable[..., Part], tensors: dict[str, Tensor], *names: str) -> list[Part]:
    return [make(*row) for row in zip(*(tensors[name] for name in names), strict=True)]


def _fault(tensors: dict[str, Tensor]) -> str | None:
    """What is wrong with a run's values, or None."""
    if not len(tensors["sigma"]):
        return "it holds no noise level"
    if (tensors["count"] < 1).any():
        return "tensor count is not positive"
    fault = value_fault(
        {
            **{name: tensors[name] for name in ("sigma", "count", "mean", "m2")},
            "variance": derived_variance(tensors["count"], tensors["m2"]),
        }
    )
    for name in ("fourth", "residual_count", "histogram"):
        fault = fault or range_fault(name, tensors[name], 0.0, MOST_VALUE**2)
    if fault or not any(name in tensors for name in STATE):
        return fault
    if not all(name in tensors for name in STATE):
        return "the states' moments are not complete"
    counts = tensors["state_count"]
    if (counts < 1).any() or (counts > MOST_COUNT).any():
        return f"tensor state_count is not between 1 and {MOST_COUNT}"
    fault = range_fault("state_mean", tensors["state_mean"], -MOST_VALUE, MOST_VALUE)
    return fault or range_fault("state_m2", tensors["state_m2"] / counts[:, None], 0.0, MOST_VALUE**2)


def same_level(a: float, b: float) -> bool:
    return math.isclose(a, b, rel_tol=SIGMA_TOLERANCE, abs_tol=0.0)


def same_levels(runs: list[RunMoments]) -> bool:
    """Whether all runs were called at the same noise levels, as every sampler without a step control does."""
    first = runs[0].levels
    return all(len(run.levels) == len(first) and all(map(same_level, run.levels, first)) for run in runs[1:])
