"""What the moments of several variables and of one have in common: streaming, exact merging, float64 on the CPU."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from typing_extensions import Self

# Values per tensor that are turned into float64 together: 2 MiB a copy, whatever the latent's size.
CHUNK = 2**18


class Moments:
    """Count, means and sums of squared deviations of one or more variables, per channel."""

    names: tuple[str, ...]  # the variables
    pairs: tuple[tuple[int, int], ...]  # the rows of the squared deviations

    def __init__(self, channels: int) -> None:
        if isinstance(channels, bool) or not isinstance(channels, int) or channels < 1:
            raise ValueError(f"{type(self).__name__}: channels is {channels!r}; pass a whole number of at least 1.")
        self.channels = channels
        self.count = 0
        self._mean = torch.zeros(len(self.names), channels, dtype=torch.float64)
        self._m2 = torch.zeros(len(self.pairs), channels, dtype=torch.float64)

    def merge(self, other: Self) -> Self:
        """The moments of both populations together, as if they had been one: exact to rounding.

        Source: Chan, Golub, LeVeque 1979. Neither operand changes. An empty one leaves the other's bits as they are.

        Raises:
            ValueError: the channel counts differ.
        """
        if type(other) is not type(self) or other.channels != self.channels:
            given = f"{type(other).__name__} of {getattr(other, 'channels', 'no')} channels"
            raise ValueError(
                f"{type(self).__name__}.merge: other is {given}, this one has {self.channels}; merge moments of one kind."
            )
        merged = type(self)(self.channels)
        merged.count = self.count + other.count
        if self.count == 0 or other.count == 0:
            source = other if self.count == 0 else self
            merged._mean, merged._m2 = source._mean, source._m2  # never changed in place
            return merged
        share = other.count / merged.count
        apart = other._mean - self._mean
        merged._mean = self._mean + apart * share
        merged._m2 = self._m2 + other._m2 + self._products(apart) * (self.count * share)
        return merged

    def _products(self, deviations: Tensor) -> Tensor:
        return torch.stack([deviations[i] * deviations[j] for i, j in self.pairs])

    def _add(self, part: Self, where: str, values: Sequence[Tensor]) -> None:
        """Take a part in, unless it or the sum is not finite; then nothing has changed."""
        merged = self.merge(part)
        if not (merged._mean.isfinite().all() and merged._m2.isfinite().all()):
            broken = [name for name, value in zip(self.names, values, strict=True) if not value.isfinite().all()]
            what = f"{' and '.join(broken)} holds NaN or infinity" if broken else "values are too large to square"
            raise ValueError(f"{where}: {what}; leave this run out, or run the model in a wider dtype.")
        self.count, self._mean, self._m2 = merged.count, merged._mean, merged._m2

    def _measured(self, values: Sequence[Tensor]) -> Self:
        """The moments of these (B, C, *spatial) tensors alone."""
        total = type(self)(self.channels)
        for chunk in chunks(values):
            total = total.merge(self._of(chunk))
        return total

    def _of(self, values: Tensor) -> Self:
        """The moments of (variables, C, n) in two passes. From the first value on, so that a constant has variance 0."""
        part = type(self)(values.shape[1])
        part.count = values.shape[-1]
        first = values[..., 0]
        shifted = values - first[..., None]
        offset = shifted.mean(-1)
        deviations = shifted - offset[..., None]
        part._mean = first + offset
        part._m2 = self._products(deviations).sum(-1)
        return part

    def _check_tensors(self, where: str, values: Sequence[Tensor]) -> None:
        for name, value in zip(self.names, values, strict=True):
            if not value.is_floating_point():
                raise ValueError(f"{where}: {name} has dtype {value.dtype}; convert it to a float dtype.")
            if value.ndim < 2 or value.shape[1] != self.channels or value.numel() == 0:
                raise ValueError(
                    f"{where}: {name} has shape {tuple(value.shape)}; pass (B, {self.channels}, *spatial), not empty."
                )
        if len({value.shape for value in values}) > 1:
            shapes = " and ".join(str(tuple(value.shape)) for value in values)
            raise ValueError(f"{where}: {' and '.join(self.names)} have shapes {shapes}; pass the same shape.")

    def _check_count(self, where: str) -> None:
        if self.count == 0:
            raise ValueError(f"{type(self).__name__}.{where}: count is 0; update it with data first.")

    @classmethod
    def _restored(cls, count: int, mean: Tensor, m2: Tensor) -> Self:
        """From stored accumulators, mean (variables, C) and m2 (pairs, C), which are copied."""
        where = f"{cls.__name__}.from_parts"
        if mean.ndim != 2 or m2.ndim != 2 or (len(mean), len(m2)) != (len(cls.names), len(cls.pairs)):
            raise ValueError(f"{where}: mean and m2 have the wrong number of rows; pass what an instance holds.")
        moments = cls(mean.shape[1])
        moments.count = int(count)
        moments._mean, moments._m2 = (t.detach().cpu().double().clone() for t in (mean, m2))
        squares = [row for row, (i, j) in enumerate(cls.pairs) if i == j]
        if moments.count < 0 or m2.shape[1] != mean.shape[1]:
            raise ValueError(
                f"{where}: count is {count}, mean {tuple(mean.shape)}, m2 {tuple(m2.shape)}; they disagree."
            )
        if not (moments._mean.isfinite().all() and moments._m2.isfinite().all() and (moments._m2[squares] >= 0).all()):
            raise ValueError(f"{where}: mean or m2 is not finite, or a variance is negative; collect the data again.")
        return moments


def chunks(values: Sequence[Tensor]) -> Iterator[Tensor]:
    """(B, C, *spatial) tensors as float64 CPU pieces (variables, C, n) that need little memory."""
    for samples in zip(*values, strict=True):
        # To the CPU first and only there to float64, which Apple GPUs lack.
        rows = [sample.detach().cpu().reshape(len(sample), -1) for sample in samples]
        width = max(1, CHUNK // rows[0].shape[0])
        for start in range(0, rows[0].shape[1], width):
            yield torch.stack([row[:, start : start + width].double() for row in rows])
