"""The quantile function of the normal distribution, of operators that every device has."""

from __future__ import annotations

import torch
from torch import Tensor

# Coefficients of AS 241's PPND7, from the highest power down.
CENTRE = ((59.109374720, 159.29113202, 50.434271938, 3.3871327179), (67.187563600, 78.757757664, 17.895169469, 1.0))
TAIL = ((0.17023821103, 1.3067284816, 2.7568153900, 1.4234372777), (0.12021132975, 0.73700164250, 1.0))
CENTRAL = 0.425  # |p - 1/2| up to which the first holds


def lower_ndtri(p: Tensor) -> Tensor:
    """z with P(Z <= z) = p for a standard normal Z, for 1e-10 <= p <= 1/2, float32. The upper half is -lower_ndtri(1 - p).

    Source: Wichura 1988, algorithm AS 241, PPND7: relative error below 1e-6. torch.special.ndtri is not there on every
    accelerator, and erfinv(2 p - 1) loses the small p that Eq. 2 of QSilk asks for.
    """
    q = p - 0.5
    centre = _ratio(CENTRAL**2 - q * q, CENTRE).mul_(q)
    tail = _ratio((-p.log()).sqrt_() - 1.6, TAIL).neg_()
    return torch.where(q < -CENTRAL, tail, centre)


def _ratio(x: Tensor, coefficients: tuple[tuple[float, ...], tuple[float, ...]]) -> Tensor:
    above, below = (_polynomial(x, each) for each in coefficients)
    return above.div_(below)


def _polynomial(x: Tensor, coefficients: tuple[float, ...]) -> Tensor:
    highest, *rest = coefficients
    value = torch.full_like(x, highest)
    for coefficient in rest:
        value = value.mul_(x).add_(coefficient)
    return value
