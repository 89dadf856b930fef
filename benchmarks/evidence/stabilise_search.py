"""The second search for Stabilise's defaults: its factors, and what was tried beside them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

from torch import Tensor

from gimbal.core.stabilise import Factors, stabilised_guidance
from gimbal.host.sampling.stages import GuidanceContext, GuidanceStage, Window

from . import steering as s

FIRST_SEED, SCREENED, FINAL = 11, 4, 8  # a candidate's number of seeds, a finalist's
RIVALS = ("FreSca", "interval 0.2 to 0.8", "APG", "dynamic thresholding", "Mahiro", "TCFG")


@dataclass(frozen=True)
class Tried:
    """Stabilise's factors, then: what is done to the rest of the guidance (coarse, energy), to the whole (limit, decorrelated),
    to the guided prediction (moments), and when (acts: plain guidance outside; guided: none outside)."""

    along: float
    across: float
    fade: float
    fine: float = 1.0
    coarse: float = 1.0
    energy: float = 0.0
    limit: float = 0.0
    decorrelated: float = 0.0
    moments: float = 0.0
    acts: tuple[float, float] = (0.0, 1.0)
    guided: tuple[float, float] = (0.0, 1.0)

    @property
    def name(self) -> str:
        own = [(field, getattr(self, field.name)) for field in fields(self)]
        changed = [(field.name, value) for field, value in own if value != field.default]
        return ", ".join(f"{name} {_brief(value)}" for name, value in changed)

    def patch(self, model: Any) -> Any:
        from gimbal.host.sampling.hooks import add_stage

        whole = self.guided == (0.0, 1.0)
        model = add_stage(model, TriedStage("candidate", Window(*(self.acts if whole else self.guided)), tried=self))
        return model if whole else s.interval(*self.guided)(model)

    def extra(self, cond: Tensor, uncond: Tensor, noisy: Tensor) -> Tensor:
        """What is added to cond, cfg - 1 times."""
        along, rest = (
            stabilised_guidance(cond, uncond, noisy, Factors(*factors))
            for factors in ((self.along, 0.0, 0.0, 1.0), (0.0, 1.0, self.fade, 1.0))
        )
        rest = s.bands(rest, cond, self.coarse, self.fine)
        if self.energy:
            rest = s.weighted(rest, cond, partial(s.power_weights, power=self.energy))
        found = along + self.across * rest
        if self.limit:
            found = s.compressed(found, cond, self.limit)
        return s.orthogonal(found, cond, 1.0 - self.decorrelated, s.SPACE, centre=True) if self.decorrelated else found


@dataclass(frozen=True, eq=False)
class TriedStage(GuidanceStage):
    tried: Tried

    def settings(self) -> str:
        return self.tried.name

    def apply(self, cond: Tensor, uncond: Tensor, call: GuidanceContext) -> Tensor:
        guided = cond + (call.cfg - 1.0) * self.tried.extra(cond, uncond, call.noisy)
        if self.tried.moments:
            guided = s.restored(guided, cond, self.tried.moments, 0.0)
        return uncond + (guided - uncond) / call.cfg


def _brief(value: float | tuple[float, float]) -> str:
    return f"{value:g}" if isinstance(value, float) else f"{value[0]:g} to {value[1]:g}"


SCREENING = (  # at cfg 7
    Tried(2.0, 0.6, 0.5),
    Tried(2.0, 0.6, 0.5, guided=(0.1, 1.0)),
    Tried(1.0, 1.0, 0.0, guided=(0.1, 1.0)),
    Tried(3.33, 1.0, 0.5),
    Tried(3.33, 1.0, 0.5, guided=(0.1, 1.0)),
    Tried(3.33, 1.0, 0.5, guided=(0.15, 1.0)),
    Tried(3.33, 1.0, 0.5, guided=(0.0, 0.9)),
    Tried(3.33, 1.0, 0.5, decorrelated=0.5),
    Tried(3.33, 1.0, 0.5, moments=0.3),
    Tried(3.33, 1.0, 0.5, limit=2.0),
    Tried(3.33, 1.0, 0.5, energy=-0.25),
    Tried(3.33, 1.0, 0.5, energy=0.25),
    Tried(3.33, 1.0, 0.5, fine=1.3),
    Tried(3.33, 1.0, 0.5, coarse=0.5),
    Tried(3.33, 1.0, 1.0),
    Tried(3.33, 1.4, 1.0),
    Tried(3.33, 1.4, 1.0, acts=(0.0, 0.5)),
    Tried(3.33, 1.4, 1.0, acts=(0.51, 1.0)),
    Tried(3.33, 1.4, 1.0, energy=0.25),
    Tried(3.33, 1.4, 1.0, fine=1.3),
    Tried(3.33, 1.4, 1.0, fine=1.5, coarse=0.7),
    Tried(5.0, 3.0, 2.0),
    Tried(5.0, 1.5, 0.5, energy=0.4),
    Tried(6.0, 2.0, 1.0),
    Tried(4.2, 1.4, 1.0, fine=1.2),
    Tried(5.5, 1.3, 1.0, fine=1.2),
    Tried(7.0, 1.3, 1.0, fine=1.3),
)
STRONGER = (  # at cfg 9
    Tried(3.0, 1.6, 2.0, fine=1.3),
    Tried(4.2, 1.2, 0.5, fine=1.2),
    Tried(4.2, 1.4, 1.0, fine=1.2),
    Tried(4.2, 1.4, 1.0, fine=1.2, energy=0.15),
    Tried(4.2, 1.4, 1.0, fine=1.4),
    Tried(4.2, 2.0, 2.0, fine=1.2),
    Tried(6.0, 1.7, 2.0, fine=1.3),
    Tried(7.0, 1.3, 1.0, fine=1.3),
    Tried(7.0, 1.5, 1.5, fine=1.3),
)
WEAKER = (  # at cfg 4
    Tried(3.0, 1.6, 2.0, fine=1.3),
    Tried(4.2, 1.4, 1.0, fine=1.4),
    Tried(4.2, 2.0, 2.0, fine=1.2),
    Tried(4.5, 1.0, 1.0, fine=1.25),
    Tried(6.0, 1.7, 2.0, fine=1.3),
)
STRONGEST = Tried(6.5, 1.3, 1.0, fine=1.3)
FINALISTS = (
    *((Tried(4.2, 1.4, 1.0), cfg) for cfg in (9.0, 4.0)),
    *((Tried(5.5, 1.3, 1.0, fine=1.2), cfg) for cfg in (9.0, 4.0)),
    *((Tried(7.0, 1.3, 1.0, fine=1.2), cfg) for cfg in (9.0, 4.0)),
    *((Tried(*each, fine=fine), 9.0) for *each, fine in ((4.5, 1.0, 1.0, 1.25), (5.0, 1.15, 1.0, 1.25))),
    (Tried(5.0, 1.35, 1.0, fine=1.3), 9.0),
    (STRONGEST, 9.0),
    # "along" rising with cfg
    (Tried(2.1, 1.3, 1.0, fine=1.2), 3.0),
    (Tried(2.65, 1.3, 1.0, fine=1.2), 4.0),
    (Tried(4.3, 1.3, 1.0, fine=1.2), 7.0),
    (Tried(7.05, 1.3, 1.0, fine=1.2), 12.0),
)


def trials() -> Iterator[tuple[Tried, float, int]]:
    """Candidates, their cfg and their number of seeds."""
    for at, candidates in ((7.0, SCREENING), (9.0, STRONGER), (4.0, WEAKER)):
        yield from ((tried, at, SCREENED) for tried in candidates)
    yield Tried(5.5, 1.3, 1.0, fine=1.2), 5.5, SCREENED
    yield from ((tried, cfg, FINAL) for tried, cfg in FINALISTS)


def rules() -> dict[str, Callable[[Any], Any]]:
    return {tried.name: tried.patch for tried, _, _ in trials()}


def rows(seed: int) -> Iterator[tuple[str, float]]:
    """Rule and cfg of this seed's rows, but for plain guidance."""
    yield from ((tried.name, cfg) for tried, cfg, seeds in trials() if seed < FIRST_SEED + seeds)
    yield from ((rule, 9.0) for rule in RIVALS)
