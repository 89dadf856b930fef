"""Moments of one run, gathered call by call, and kept on disk so that an interrupted calibration can go on."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path

import safetensors
import torch
from safetensors import safe_open
from torch import Tensor

from . import storage
from .moments import JointMoments, StateMoments
from .residual import Residual
from .statistics import SIGMA_TOLERANCE

FORMAT = "gimbal.qdrift.run/2"


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
        storage.write(path, tensors, {"format": FORMAT})

    @classmethod
    def load(cls, path: Path, channels: int, trim: float | None = None) -> RunMoments:
        """Bit for bit what was saved. ValueError if it cannot be used; FileNotFoundError if there is none."""
        if not path.is_file():
            raise FileNotFoundError(path)
        try:
            with safe_open(str(path), framework="pt") as file:
                if (file.metadata() or {}).get("format") != FORMAT:
                    raise ValueError(f"{path}: not a run of this version.")
                tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
            count, mean, m2 = (tensors[name] for name in ("count", "mean", "m2"))
            moments = [JointMoments.from_parts(int(n), *rest) for n, *rest in zip(count, mean, m2, strict=True)]
            residuals = [
                Residual(*parts)
                for parts in zip(tensors["residual_count"], tensors["fourth"], tensors["histogram"], strict=True)
            ]
            states = []
            if "state_count" in tensors:
                parts = (tensors[f"state_{name}"] for name in ("count", "mean", "m2"))
                states = [StateMoments.from_parts(int(n), *rest) for n, *rest in zip(*parts, strict=True)]
        except (safetensors.SafetensorError, KeyError) as error:
            raise ValueError(f"{path}: no whole file of a run ({error}).") from error
        if not len(moments) == len(residuals) == len(tensors["sigma"]) or mean.shape[-1] != channels:
            raise ValueError(f"{path}: its tensors do not fit together.")
        return cls(channels, trim, tensors["sigma"].tolist(), moments, residuals, states)


def same_level(a: float, b: float) -> bool:
    return math.isclose(a, b, rel_tol=SIGMA_TOLERANCE, abs_tol=0.0)


def same_levels(runs: list[RunMoments]) -> bool:
    """Whether all runs were called at the same noise levels, as every sampler without a step control does."""
    first = runs[0].levels
    return all(len(run.levels) == len(first) and all(map(same_level, run.levels, first)) for run in runs[1:])
