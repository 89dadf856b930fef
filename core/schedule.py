"""Where a noise level lies in a sampling schedule."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise


def step_index(sigma: float, sigmas: Sequence[float], rel_tol: float = 1e-4) -> int:
    """The step i with sigmas[i] >= sigma > sigmas[i + 1].

    Args:
        sigma: noise level of a model call. Above the first it counts as step 0, at or below the last as the last step.
        sigmas: the schedule, non-increasing, one more than there are steps.
        rel_tol: how far below a step's own level a call still belongs to it; samplers round.
    Raises:
        ValueError: the schedule is shorter than one step or rises.
    """
    if len(sigmas) < 2 or any(later > earlier for earlier, later in pairwise(sigmas)):
        raise ValueError(f"step_index: sigmas must be at least two non-increasing values, got {list(sigmas)}.")
    reached = sum(start >= sigma * (1.0 - rel_tol) for start in sigmas[:-1])
    return max(reached - 1, 0)
