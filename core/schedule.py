"""Where a sampler is in its schedule."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

TOLERANCE = 1e-3  # relative: samplers round, and some move a level a little
INTERVAL_TOLERANCE = 1e-5  # relative: of float32's rounding alone


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


class ChosenSteps:
    """Whether each model call of one run lies in one of the chosen steps, with few looks at noise levels.

    A noise level lies on the device, and its value is to be waited for. A falling schedule and a sampler's callbacks bound
    the step of a call to two. The value is asked for only where these two differ in whether they are chosen, that is at
    the edges of the chosen range, and wherever the sampler's callbacks are not what they should be. On other schedules
    every value is asked for.

    Args:
        sigmas: (steps + 1,) noise levels, in any order.
        chosen: for each step whether it is chosen.
    """

    def __init__(self, sigmas: Sequence[float], chosen: Sequence[bool]):
        if len(chosen) != max(len(sigmas) - 1, 0):
            raise ValueError(f"ChosenSteps: {len(chosen)} choices for {len(sigmas)} levels; pass one for each step.")
        self._sigmas, self._chosen = tuple(sigmas), tuple(chosen)
        self._falling = all(high >= low for high, low in pairwise(sigmas))
        self._counter = StepCounter(sigmas)
        self._begun = self._since = 0  # callbacks so far; calls since the last
        self._regular = True

    def holds(self, begun: int, value: Callable[[], float]) -> bool:
        """Whether the next call lies in a chosen step. In a falling schedule: in its interval, the higher end included.

        Args:
            begun: callbacks made before it. value: gives its noise level.
        """
        if not any(self._chosen) or all(self._chosen):
            return any(self._chosen)
        if not self._falling:
            return self._chosen[min(self._counter.step(value(), begun), len(self._chosen) - 1)]
        self._since = self._since + 1 if begun == self._begun else 1
        self._begun = begun
        known = self._by_callbacks()
        if known is not None:
            return known
        step = self._interval(value())
        if not begun - 1 <= step <= begun:
            self._regular = False
        return self._chosen[step]

    def _by_callbacks(self) -> bool | None:
        """None where callbacks do not tell."""
        most = 2 if self._begun else 1  # a step's second call and the next one's first; before any callback one alone
        if not self._regular or self._since > most or self._begun >= len(self._chosen):
            return None
        found = {self._chosen[step] for step in (self._begun - 1, self._begun) if step >= 0}
        return found.pop() if len(found) == 1 else None

    def _interval(self, sigma: float) -> int:
        begun = sum(level * (1.0 + INTERVAL_TOLERANCE) >= sigma for level in self._sigmas[:-1])
        return max(begun - 1, 0)
