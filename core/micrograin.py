"""QSilk micrograin stabilizer: keep each sample within its own quantile range."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from . import device
from .quantile import sample_quantiles
from .shapes import expand_like

Form = Literal["hard", "tanh", "smooth"]

EPSILON = 1e-8  # the eps of QSilk Eq. 1
FAR = torch.finfo(torch.float32).max / 2  # stands for an infinite excess; sums and products with it stay finite


def micrograin(
    x: Tensor,
    q_low: float = 0.001,
    q_high: float = 0.999,
    form: Form = "hard",
    alpha: float = 2.0,
    knee: float = 0.8,
) -> Tensor:
    """Limit each sample to the range [l, h] between two of its own quantiles.

    Source: QSilk Sec. 3.1; `tanh` is Eq. 1, `hard` the clamp the author's node uses. With m = (l + h) / 2 and
    d = (h - l) / 2:
      hard    clamp(x, l, h). A quantile of 0 or 1 leaves that side alone, so (0, 1) is the identity.
      tanh    m + d tanh(alpha (x - m) / (d + eps)). Multiplies contrast at the centre by alpha.
      smooth  ours: x itself up to knee * d from m; beyond, the excess s becomes s / (1 + |s| / r), r = (1 - knee) d,
              which starts with slope 1 and approaches the bound. knee = 1 is hard.
    A sample without spread (d = 0) is all m, so a constant one comes back unchanged.

    The quantiles are those of the finite elements. Infinities go to the bounds like any outlier (and stay on a side
    that is left alone), NaN stays NaN where it is and reaches nothing else. Gradients take the bounds as constants.

    Args:
        x: latent or x0 prediction, (B, C, *spatial), any float dtype, latent units.
        q_low, q_high: quantiles, 0 <= q_low < q_high <= 1.
        form: hard | tanh | smooth.
        alpha: slope of tanh at the centre, > 0. The other forms ignore it.
        knee: share of d that smooth leaves alone, 0 to 1. The other forms ignore it.
    Returns:
        Same shape, dtype and device, computed in float32. Sample b depends on sample b only.
    Raises:
        ValueError: x, a quantile, form, alpha or knee is outside what is said above.
    """
    _check(x, q_low, q_high, form, alpha, knee)
    if form == "smooth" and knee == 1.0:
        form = "hard"
    if x.dtype == torch.float64:
        narrow = x.float()
        limited = micrograin(narrow, q_low, q_high, form, alpha, knee)
        return torch.where(limited == narrow, x, limited.double())  # what was not limited keeps all its digits
    if form == "hard":
        return _hard(x, q_low, q_high)

    wide = x.float()
    bounds = _bounds(wide, [q_low, q_high])
    low_half, high_half = bounds / 2
    half_range = high_half - low_half  # (B,); halved first, because high - low can overflow
    middle = expand_like(bounds[0] + half_range, x)
    half_range = expand_like(half_range, x)
    limit = _tanh(wide, middle, half_range, alpha) if form == "tanh" else _smooth(wide, middle, half_range, knee)
    return limit.to(x.dtype)


def _check(x: Tensor, q_low: float, q_high: float, form: str, alpha: float, knee: float) -> None:
    if not x.is_floating_point():
        raise ValueError(f"micrograin: x has dtype {x.dtype}; convert it to a float dtype.")
    if x.ndim < 2 or x.numel() == 0:
        raise ValueError(f"micrograin: x has shape {tuple(x.shape)}; pass (B, C, *spatial) with at least one element.")
    if not 0.0 <= q_low < q_high <= 1.0:
        raise ValueError(
            f"micrograin: need 0 <= q_low < q_high <= 1, got q_low={q_low}, q_high={q_high}; lower q_low or raise q_high."
        )
    if form not in ("hard", "tanh", "smooth"):
        raise ValueError(f"micrograin: form is {form!r}; use 'hard', 'tanh' or 'smooth'.")
    if not 0.0 < alpha < math.inf:
        raise ValueError(f"micrograin: alpha is {alpha}; use a finite value above 0.")
    if not 0.0 <= knee <= 1.0:
        raise ValueError(f"micrograin: knee is {knee}; use a value between 0 and 1.")


def _bounds(x: Tensor, q: list[float]) -> Tensor:
    """(len(q), B). A sample without a finite element gets 0, so that its infinities have somewhere to go."""
    return sample_quantiles(x, q).nan_to_num(0.0)


def _hard(x: Tensor, q_low: float, q_high: float) -> Tensor:
    sides = [q for q in (q_low, q_high) if 0.0 < q < 1.0]
    if not sides:
        return x
    bounds = _bounds(x, sides)  # (sides, B)
    low_row = 0 if q_low > 0.0 else None
    high_row = -1 if q_high < 1.0 else None
    # Rounding the bounds to x's dtype first equals clamping in float32 and rounding after: rounding keeps the order.
    if device.on_host(x) and len(x) == 1:  # plain numbers as bounds are several times faster on the CPU than tensors
        return torch.clamp(x, *(None if row is None else bounds[row].item() for row in (low_row, high_row)))
    if not device.on_host(x) or x.requires_grad:  # clamp(out=...) has no gradient
        bounds = bounds.to(x.dtype)
        low, high = (None if row is None else expand_like(bounds[row], x) for row in (low_row, high_row))
        return torch.clamp(x, low, high)
    result = torch.empty_like(x)
    for sample, limited, ends in zip(x, result, bounds.T.tolist(), strict=True):
        low, high = (None if row is None else ends[row] for row in (low_row, high_row))
        torch.clamp(sample, low, high, out=limited)
    return result


def _tanh(x: Tensor, middle: Tensor, half_range: Tensor, alpha: float) -> Tensor:
    return torch.addcmul(middle, (x - middle).mul_(alpha / (half_range + EPSILON)).tanh_(), half_range)


def _smooth(x: Tensor, middle: Tensor, half_range: Tensor, knee: float) -> Tensor:
    reach = knee * half_range
    core = x.clamp(middle - reach, middle + reach)
    room = ((1.0 - knee) * half_range).clamp(min=torch.finfo(torch.float32).tiny)
    excess = (x - core).clamp_(-FAR, FAR)  # 0 in the core
    return core.addcmul_(excess, room / excess.abs().add_(room))
