"""Moments per channel of the quantization error and of the sampler's state."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from .accumulators import Moments, chunks


def explained(m2: Tensor) -> tuple[Tensor, Tensor]:
    """The regression of delta on eps_hat from sums of squared deviations.

    Source: Q-Drift Eq. 12-15, METHODS.md section 4.1.

    Args:
        m2: (..., 3, C) float64, sums over (eps_hat eps_hat, eps_hat delta, delta delta).
    Returns:
        The slope Cov/Var(eps_hat), 0 where eps_hat is constant, and the sum of squares of delta that it leaves,
        never below 0; both (..., C).
    """
    square, product, error = m2.unbind(-2)
    slope = (product / square).where(square > 0, 0.0)
    return slope, (error - slope * product).clamp(min=0.0)


class JointMoments(Moments):
    """Joint second moments of (eps_hat, delta) per channel, over all samples and positions.

    Source: Q-Drift Eq. 10-15, METHODS.md section 4.1. eps_hat is the quantized model's output after guidance,
    delta = eps_hat - eps its error against full precision at the same state. All variances divide by count.

    Attributes:
        channels, count: the channels C, and the positions taken in, the same for every channel.
        mean: (2, C) float64: of eps_hat, of delta.
        m2: (3, C) float64, sums of squared deviations: eps_hat eps_hat, eps_hat delta, delta delta.
    """

    names = ("eps_hat", "delta")
    pairs = ((0, 0), (0, 1), (1, 1))

    @classmethod
    def from_parts(cls, count: int, mean: Tensor, m2: Tensor) -> JointMoments:
        """An instance from its three attributes, as stored. ValueError if they cannot be such attributes."""
        return cls._restored(count, mean, m2)

    @property
    def mean(self) -> Tensor:
        return self._mean

    @property
    def m2(self) -> Tensor:
        return self._m2

    def update(self, eps_hat: Tensor, delta: Tensor, trim: float | None = None) -> None:
        """Take in all positions of two (B, C, *spatial) tensors of any float dtype on any device.

        Args:
            eps_hat, delta: the same shape, the model's units.
            trim: None takes everything. A number leaves out each element, and its eps_hat with it, at which
                |delta - mean| > trim * std; mean and std are its channel's over this call's data. What is left of a
                channel stands for all its positions, so that one count holds for every channel.
        Raises:
            ValueError: wrong shapes, NaN or infinity, or trim leaves nothing of a channel. The moments are then as
                before.
        """
        where = "JointMoments.update"
        values = (eps_hat, delta)
        self._check_tensors(where, values)
        if trim is not None and not (math.isfinite(trim) and trim > 0):
            raise ValueError(f"{where}: trim is {trim}; pass a positive number of standard deviations, or None.")
        part = self._measured(values)
        if trim is not None and part._m2.isfinite().all():
            kept = self._trimmed(values, trim, part)
            if kept is None:
                raise ValueError(f"{where}: trim {trim} leaves nothing of a channel; raise it (4 is usual).")
            part = kept
        self._add(part, where, values)

    def _trimmed(self, values: tuple[Tensor, Tensor], trim: float, whole: JointMoments) -> JointMoments | None:
        """The moments of the elements within the limits, by channel; whole: those of all. None if a channel has none."""
        centre, limit = whole._mean[..., None], trim * whole.unconditional_variance().sqrt()[:, None]

        def deviations(mean: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
            for chunk in chunks(values):  # (2, C, n)
                kept = (chunk[1] - centre[1]).abs() <= limit
                yield kept, (chunk - mean).where(kept, 0.0)

        found = [(kept.sum(-1), part.sum(-1)) for kept, part in deviations(centre)]
        count, shift = (torch.stack(each).sum(0) for each in zip(*found, strict=True))
        if (count == 0).any():
            return None
        part = JointMoments(self.channels)
        part.count, part._mean = whole.count, whole._mean + shift / count
        sums = [self._products(each).sum(-1) for _, each in deviations(part._mean[..., None])]
        part._m2 = torch.stack(sums).sum(0) * (whole.count / count.double())
        return part

    def conditional_variance(self) -> Tensor:
        """V = Var(delta) - Cov(delta, eps_hat)^2 / Var(eps_hat), (C,) float64, >= 0 (Q-Drift Eq. 15).

        Var(delta) where eps_hat is constant. ValueError without data.
        """
        self._check_count("conditional_variance")
        return explained(self._m2)[1] / self.count

    def unconditional_variance(self) -> Tensor:
        """Var(delta), (C,) float64: the ablation that ignores eps_hat. ValueError without data."""
        self._check_count("unconditional_variance")
        return self._m2[2] / self.count

    def slope(self) -> Tensor:
        """a = Cov(delta, eps_hat) / Var(eps_hat), (C,) float64; 0 where eps_hat is constant. ValueError without data."""
        self._check_count("slope")
        return explained(self._m2)[0]

    def intercept(self) -> Tensor:
        """mu_delta - a mu_eps_hat, (C,) float64, so that E[delta | eps_hat] = slope eps_hat + intercept."""
        return self._mean[1] - self.slope() * self._mean[0]

    def mean_conditional(self, eps_hat: Tensor) -> Tensor:
        """E[delta | eps_hat] = mu_delta + a (eps_hat - mu_eps_hat), as D2-DPM's bias correction takes it (METHODS 4.1).

        Args:
            eps_hat: (B, C, *spatial), any float dtype.
        Returns:
            Same shape, dtype and device; float32 inside, float64 for float64.
        """
        where = "JointMoments.mean_conditional"
        self._check_count("mean_conditional")
        self._check_tensors(where, (eps_hat, eps_hat))
        dtype: torch.dtype = torch.promote_types(eps_hat.dtype, torch.float32)
        view = (-1,) + (1,) * (eps_hat.ndim - 2)
        slope, intercept = (t.to(dtype).to(eps_hat.device).view(view) for t in (self.slope(), self.intercept()))
        return (eps_hat.to(dtype) * slope + intercept).to(eps_hat.dtype)

    def relative_error(self) -> Tensor:
        """sqrt(E[delta^2] / E[eps^2]) with eps = eps_hat - delta, (C,) float64: the error as a share of the signal.

        Infinite where there is an error but no signal, 0 where there is neither. ValueError without data.
        """
        error = self.error_power()
        square, product, own = self._m2.unbind()
        signal = (square - 2 * product + own).clamp(min=0.0) / self.count + (self._mean[0] - self._mean[1]).square()
        return (error / signal).where(error > 0, 0.0).sqrt()

    def noise_share(self) -> Tensor:
        """V / E[delta^2], (C,) float64 in [0, 1]: what mean and slope do not explain of the error; 0 without an error.

        An upper bound of what acts as noise: V also holds whatever depends on the input in another way.
        """
        error = self.error_power()
        return (self.conditional_variance() / error).where(error > 0, 0.0).clamp(max=1.0)

    def pooled(self) -> JointMoments:
        """The moments of all channels as one population (`scalar`): the channels' means count as variation too."""
        pooled = JointMoments(1)
        pooled.count = self.count * self.channels
        if self.count:
            between = pooled._of(self._mean[:, None, :])  # the channels' means as C values of one channel
            pooled._mean = between._mean
            pooled._m2 = self._m2.sum(-1, keepdim=True) + between._m2 * self.count
        return pooled

    def error_power(self) -> Tensor:
        """E[delta^2], (C,) float64. ValueError without data."""
        return self.unconditional_variance() + self._mean[1].square()


class StateMoments(Moments):
    """Mean and variance of the sampler's state per channel, for moment matching (METHODS.md section 4.3).

    Attributes:
        channels, count: the channels C, and the positions taken in.
        mean: (C,) float64.
        m2: (C,) float64, sum of squared deviations; the variance is m2 / count.
    """

    names = ("x",)
    pairs = ((0, 0),)

    @classmethod
    def from_parts(cls, count: int, mean: Tensor, m2: Tensor) -> StateMoments:
        """An instance from its three attributes, as stored. ValueError if they cannot be such attributes."""
        return cls._restored(count, mean[None], m2[None])

    @property
    def mean(self) -> Tensor:
        return self._mean[0]

    @property
    def m2(self) -> Tensor:
        return self._m2[0]

    def update(self, x: Tensor) -> None:
        """Take in all positions of (B, C, *spatial), any float dtype and device.

        Raises:
            ValueError: wrong shape, NaN or infinity. The moments are then as before.
        """
        self._check_tensors("StateMoments.update", (x,))
        self._add(self._measured((x,)), "StateMoments.update", (x,))

    def variance(self) -> Tensor:
        """(C,) float64. ValueError without data."""
        self._check_count("variance")
        return self.m2 / self.count


def match(full: StateMoments, quantized: StateMoments) -> tuple[Tensor, Tensor]:
    """The map of the quantized runs' state onto the full-precision one: x' = scale x + shift.

    Source: METHODS.md section 4.3, x' = m_F + (s_F/s_Q)(x - m_Q), the Monge map between two Gaussians.

    Returns:
        scale, shift: (C,) float64 each. Where the quantized state is constant (s_Q = 0) scale is 1.
    Raises:
        ValueError: the channel counts differ, or one has no data.
    """
    if full.channels != quantized.channels:
        raise ValueError(
            f"match: full has {full.channels} channels, quantized {quantized.channels}; pass states of one latent."
        )
    scale = (full.variance() / quantized.variance()).sqrt().where(quantized.m2 > 0, 1.0)
    return scale, full.mean - scale * quantized.mean
