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

    A noise level lies on the device, and its value is to be waited for. Under a sampler that calls the model once a step,
    with a callback each, callbacks tell the step of a call on a falling schedule. The value is then asked for in the
    second call, to see that they do, and at the edges of the chosen range. Under other samplers, which wait for levels
    themselves, and on other schedules it is asked for in every call.

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
        self._calls = 0
        self._counted = True  # one call a callback, as far as seen

    def holds(self, begun: int, value: Callable[[], float]) -> bool:
        """Whether the next call lies in a chosen step. In a falling schedule: in its interval, the higher end included.

        Args:
            begun: callbacks made before it. value: gives its noise level.
        """
        if not any(self._chosen) or all(self._chosen):
            return any(self._chosen)
        if not self._falling:
            return self._chosen[min(self._counter.step(value(), begun), len(self._chosen) - 1)]
        self._counted = self._counted and begun == self._calls < len(self._chosen)
        self._calls += 1
        if self._counted and self._calls != 2:
            near = set(self._chosen[max(begun - 1, 0) : begun + 1])
            if len(near) == 1:
                return near.pop()
        step = self._interval(value())
        self._counted = self._counted and step == begun
        return self._chosen[step]

    def _interval(self, sigma: float) -> int:
        begun = sum(level * (1.0 + INTERVAL_TOLERANCE) >= sigma for level in self._sigmas[:-1])
        return max(begun - 1, 0)
