"""The gains that statistics give on the schedule that they were measured on, by the rule that sampling takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..core.gain_formulas import PathName
from ..core.linear_samplers import SOLVERS
from ..core.plan import Plan, make_plan
from .statistics import QDriftStatistics

DRAWS = 500  # groups of runs
OWN = (*SOLVERS, "euler_ancestral")  # solvers that can be read without ComfyUI


@dataclass(frozen=True)
class Rule:
    """What takes V to c on a schedule of S levels, from each level to the next, the last one's step to 0.

    Attributes:
        solver: the calibration's where its coefficients can be read here, else euler.
        equation: as Plan has it.
    """

    path: PathName
    solver: str
    levels: tuple[float, ...]
    equation: str

    @classmethod
    def of(cls, statistics: QDriftStatistics) -> Rule:
        about, levels = statistics.provenance, tuple(statistics.sigma.tolist())
        solver = about.solver if about.solver in OWN else "euler"
        path: PathName = "flow" if about.path == "flow" else "ve"
        plain = cls(path, solver, levels, "")
        return cls(path, solver, levels, plain._plan(torch.zeros(len(levels), 1)).equation)

    def gains(self, variance: Tensor) -> Tensor:
        """c, (S, N), of V, (S, N), at strength 1 and without a cap. float64."""
        return self._plan(variance).gains

    def _plan(self, variance: Tensor) -> Plan:
        levels = torch.tensor(self.levels, dtype=torch.float64).log()

        def at(sigma: float) -> Tensor:
            return variance[int((levels - torch.tensor(sigma, dtype=torch.float64).log()).abs().argmin())]

        return make_plan(self.solver, [*self.levels, 0.0], path=self.path, variance=at, cap=float("inf"))


def spread(statistics: QDriftStatistics, rule: Rule, sizes: Sequence[int]) -> tuple[tuple[int, Tensor, Tensor], ...]:
    """For each size K, the lowest and the highest gain (S,) that K of the runs give; () if no run's own V is kept.

    Groups are drawn by chance, with a fixed seed; with them go the K runs of the lowest V and of the highest at each
    level, so that the range is the whole one where a gain depends on its own level alone. A group's V is the mean of
    its runs' own, and of the channels.
    """
    if statistics.run_variance is None:
        return ()
    alone = statistics.run_variance.double().mean(2)  # (R, S)
    found = []
    for size in sizes:
        groups = _groups(alone, size)  # (N, K)
        gains = rule.gains(alone[groups].mean(1).T)  # (S, N)
        found.append((size, gains.amin(1), gains.amax(1)))
    return tuple(found)


def _groups(alone: Tensor, size: int) -> Tensor:
    """Different runs' places, (N, size)."""
    runs = len(alone)
    if size == runs:
        return torch.arange(runs)[None]
    generator = torch.Generator().manual_seed(0)
    drawn = torch.rand(DRAWS, runs, generator=generator).argsort(1)[:, :size]
    order = alone.argsort(0).T  # (S, R), from the lowest V
    return torch.cat([drawn, order[:, :size], order[:, -size:]])
