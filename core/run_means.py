"""Means over the runs of a calibration, what their spread says of their error, and what is left to use of them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class RunMeans:
    """Mean over runs, and its standard error, of a tensor that each run gives.

    Merges exactly (Chan, Golub, LeVeque 1979). float64 on the CPU; float32 elsewhere, where float64 may be missing.

    Attributes:
        count: runs. mean, m2: of the given shape; m2 is the sum of squared deviations.
    """

    def __init__(self, shape: Sequence[int], device: torch.device | str = "cpu") -> None:
        dtype = torch.float64 if torch.device(device).type == "cpu" else torch.float32
        self.count = 0
        self.mean = torch.zeros(*shape, dtype=dtype, device=device)
        self.m2 = torch.zeros_like(self.mean)

    @classmethod
    def from_parts(cls, count: int, mean: Tensor, m2: Tensor) -> RunMeans:
        """An instance from its attributes, as stored. ValueError if they cannot be such attributes."""
        usable = mean.shape == m2.shape and bool((mean.isfinite() & m2.isfinite() & (m2 >= 0)).all())
        if count < 0 or not usable:
            raise ValueError(f"RunMeans: {count} runs, mean {tuple(mean.shape)}, m2 {tuple(m2.shape)} cannot be such.")
        made = cls(mean.shape, mean.device)
        made.count, made.mean, made.m2 = count, mean.to(made.mean), m2.to(made.mean)
        return made

    def with_run(self, value: Tensor) -> RunMeans:
        """These runs and one more, whose tensor this is.

        Raises:
            ValueError: another shape, NaN or infinity.
        """
        if value.shape != self.mean.shape or not value.isfinite().all():
            raise ValueError(
                f"RunMeans: a run's {tuple(value.shape)} does not fit {tuple(self.mean.shape)}, or holds NaN or "
                "infinity; leave this run out."
            )
        made = RunMeans(self.mean.shape, self.mean.device)
        made.count = self.count + 1
        made.mean, made.m2 = included(self.count, self.mean, self.m2, value.to(self.mean))
        return made

    def merge(self, other: RunMeans) -> RunMeans:
        """The runs of both, as if measured together. ValueError if the shapes differ."""
        if other.mean.shape != self.mean.shape:
            raise ValueError(f"RunMeans: {tuple(other.mean.shape)} and {tuple(self.mean.shape)}; merge equal shapes.")
        made = RunMeans(self.mean.shape, self.mean.device)
        made.count = self.count + other.count
        share = other.count / max(made.count, 1)
        apart = other.mean.to(self.mean) - self.mean
        made.mean = self.mean + apart * share
        made.m2 = self.m2 + other.m2.to(self.m2) + apart.square() * (self.count * share)
        return made

    def standard_error(self) -> Tensor:
        """Of the mean, over runs. ValueError with fewer than two runs, which show no spread."""
        if self.count < 2:
            raise ValueError(f"RunMeans.standard_error: {self.count} runs show no spread; pass two or more.")
        return (self.m2 / (self.count * (self.count - 1))).sqrt()


def included(count: int, mean: Tensor, m2: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and sum of squared deviations once `value` has joined `count` values."""
    apart = value - mean
    return mean + apart / (count + 1), m2 + apart.square() * (count / (count + 1))


def shrunk(mean: Tensor, standard_error: Tensor) -> Tensor:
    """Each mean moved towards 0 by what may be noise: mean max(0, 1 - standard_error^2 / mean^2).

    The positive-part Wiener factor with the signal's power estimated by mean^2 - standard_error^2. A mean within its
    own standard error becomes 0; of pure noise a third of the power is left.

    Args:
        mean, standard_error: the same shape.
    """
    square = mean.square()
    kept = (square - standard_error.square()).clamp(min=0.0)
    return mean * (kept / square).where(square > 0, 0.0)


def best(count: int, mean: Tensor, m2: Tensor) -> Tensor:
    """The mean as it is to be used: shrunk where two runs or more tell its error."""
    return mean if count < 2 else shrunk(mean, (m2 / (count * (count - 1))).sqrt())
