"""Where a sampler is in its schedule."""

from __future__ import annotations

from collections.abc import Sequence

TOLERANCE = 1e-3  # relative: samplers round, and some move a level a little


class StepCounter:
    """The step that each model call of one run belongs to, for any schedule: falling, rising, with levels repeated.

    A sampler says how far it is by its callback, which it makes once a step, after the step's first model call. A call
    at the level at which the next step starts belongs to that step, as the last stage of Heun's method does.

    Args:
        sigmas: (steps + 1,) noise levels, in any order.
    """

    def __init__(self, sigmas: Sequence[float]):
        self._sigmas = tuple(sigmas)
        self._at: int | None = None

    def step(self, sigma: float, begun: int) -> int:
        """The step, from 0, of a call. Calls are to be asked for in their order; some may be left out.

        Args:
            sigma: noise level of the call.
            begun: callbacks made before it. A sampler without callbacks has 0 throughout, and is followed by its levels.
        Returns:
            steps - 1 at most, unless the sampler makes more callbacks than the schedule has steps.
        """
        if begun > 0:
            self._at = begun if self._reached(begun, sigma) else begun - 1
        elif self._at is None:
            self._at = 0
        else:
            while self._reached(self._at + 1, sigma):
                self._at += 1
        return self._at

    def _reached(self, step: int, sigma: float) -> bool:
        """Whether the level lies at this step's start or beyond it, seen from the step before."""
        if step >= len(self._sigmas) - 1:
            return False
        before, start = self._sigmas[step - 1], self._sigmas[step]
        return sigma >= start * (1.0 - TOLERANCE) if start > before else sigma <= start * (1.0 + TOLERANCE)
