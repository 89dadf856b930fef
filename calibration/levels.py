"""The noise levels of a schedule: whether two are the same, and how messages name them."""

from torch import Tensor

# The same schedule, computed on two machines, may differ in float32's last bits.
SIGMA_TOLERANCE = 1e-6


def same_levels(sigma: Tensor, other: Tensor) -> bool:
    """Whether two schedules, (S,) and (T,), all positive, are the same."""
    return len(sigma) == len(other) and bool(((other / sigma).log().abs() <= SIGMA_TOLERANCE).all())


def levels(sigma: Tensor) -> str:
    """Noise levels in words."""
    return f"{len(sigma)} sigmas from {sigma[0]:.4g} to {sigma[-1]:.4g}"
