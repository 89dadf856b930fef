"""What statistics may look like. Checked before anything is read, and again before anything is used."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from .moments import explained

DTYPES = {"F64": torch.float64, "F32": torch.float32, "I64": torch.int64, "BF16": torch.bfloat16}
# Name: dtype and dimensions, where a letter stands for one number throughout.
LAYOUT: dict[str, tuple[str, tuple[int | str, ...]]] = {
    "sigma": ("F64", ("S",)),
    "count": ("I64", ("S",)),
    "mean": ("F64", ("S", 2, "C")),
    "m2": ("F64", ("S", 3, "C")),
    "variance": ("F32", ("S", "C")),
    "state_sigma": ("F64", ("T",)),
    "state_scale": ("F32", ("T", "C")),
    "state_shift": ("F32", ("T", "C")),
    "state_scale_drift": ("F32", ("T", "C")),
    "state_shift_drift": ("F32", ("T", "C")),
    "state_scale_layers": ("F32", ("T", "C")),
    "state_shift_layers": ("F32", ("T", "C")),
    "layer_sigma_end": ("F64", ("G",)),
    "layer_offset": ("BF16", ("G", "W")),
    "run_variance": ("F32", ("R", "S", "C")),
}
REQUIRED = ("sigma", "count", "mean", "m2", "variance")
STATE = ("state_sigma", "state_scale", "state_shift")
STATE_DRIFT = ("state_scale_drift", "state_shift_drift")
LAYERS = ("layer_sigma_end", "layer_offset")
STATE_LAYERS = ("state_scale_layers", "state_shift_layers")
# Together, with what else each needs: a map that was found beside a correction is of no use without it.
WHOLE = (
    (STATE, STATE),
    (STATE_DRIFT, STATE + STATE_DRIFT),
    (LAYERS, LAYERS),
    (STATE_LAYERS, STATE + LAYERS + STATE_LAYERS),
)
MOST = {"S": 10_000, "T": 10_000, "R": 10_000, "C": 4096, "G": 10_000, "W": 2**26}
WHAT = {"S": "sigmas", "T": "state sigmas", "R": "runs", "C": "channels", "G": "layer sigmas", "W": "layer channels"}
# Means, standard deviations and slopes up to here leave everything that is worked out of them within float32.
MOST_VALUE = 1e15
MOST_COUNT = 2**48  # far more than anyone samples, and sums of many files stay whole numbers
# Of a map of the state. Maps of models that work scale by 0.5 to 2, and shift by less than the state's deviation.
MOST_SCALE, MOST_SHIFT = 1e4, 1e8


def layout_fault(layout: Mapping[str, tuple[str, tuple[int, ...]]], channels: int, runs: int) -> str | None:
    """What is wrong with tensors of these dtypes and shapes, or None. Unknown names are no fault."""
    sizes = {"C": channels, "R": runs}
    fault = dimension_fault(layout, LAYOUT, REQUIRED, sizes)
    if fault:
        return fault
    for letter, size in sizes.items():
        if not 1 <= size <= MOST[letter]:
            return f"it holds {size} {WHAT[letter]}, not 1 to {MOST[letter]}"
    for part, whole in WHOLE:
        missing = [name for name in whole if name not in layout]
        if missing and any(name in layout for name in part):
            return f"{', '.join(missing)} is missing beside {', '.join(name for name in part if name in layout)}"
    return None


def contents_fault(tensors: Mapping[str, Tensor], channels: int, runs: int) -> str | None:
    """What is wrong with statistics' tensors, their variance not among them: dtypes, shapes, values. None: nothing."""
    names = {dtype: name for name, dtype in DTYPES.items()}
    layout = {name: (names.get(t.dtype, str(t.dtype)), tuple(t.shape)) for name, t in tensors.items()}
    # What follows from the others has their shape; it is made once they are known to have the right one.
    if "sigma" in layout:
        layout["variance"] = ("F32", (*layout["sigma"][1], channels))
    fault = layout_fault(layout, channels, runs)
    if fault is not None:
        return fault
    return value_fault({**tensors, "variance": derived_variance(tensors["count"], tensors["m2"])})


def dimension_fault(
    layout: Mapping[str, tuple[str, tuple[int, ...]]],
    wanted: Mapping[str, tuple[str, tuple[int | str, ...]]],
    required: Iterable[str],
    sizes: dict[str, int],
) -> str | None:
    """What is wrong with dtypes and dimensions, or None; sizes of letters that it does not hold yet are added to it."""
    for name in required:
        if name not in layout:
            return f"tensor {name} is missing"
    for name, (dtype, dimensions) in wanted.items():
        if name not in layout:
            continue
        found, shape = layout[name]
        if found != dtype:
            return f"tensor {name} has dtype {found} instead of {dtype}"
        if len(shape) != len(dimensions):
            return f"tensor {name} has shape {shape} instead of ({', '.join(map(str, dimensions))})"
        for size, dimension in zip(shape, dimensions, strict=True):
            right = dimension if isinstance(dimension, int) else sizes.setdefault(dimension, size)
            if size != right:
                return f"tensor {name} has shape {shape}; it should have {right} where it has {size}"
    return None


def range_fault(name: str, tensor: Tensor, low: float, high: float) -> str | None:
    """What is wrong with values that are to lie from low to high, or None."""
    if not tensor.isfinite().all():
        return f"tensor {name} holds NaN or infinity"
    if low == 0.0 and (tensor < 0).any():
        return f"tensor {name} is negative"
    if (tensor < low).any() or (tensor > high).any():
        return f"tensor {name} holds values beyond {high:g}"
    return None


def map_fault(scale: Tensor, shift: Tensor, suffix: str = "") -> str | None:
    """What is wrong with maps of the state, or None."""
    fault = range_fault(f"state_scale{suffix}", scale, 0.0, MOST_SCALE)
    return fault or range_fault(f"state_shift{suffix}", shift, -MOST_SHIFT, MOST_SHIFT)


def value_fault(tensors: Mapping[str, Tensor]) -> str | None:
    """What is wrong with the values of tensors whose layout is right, or None."""
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            return f"tensor {name} holds NaN or infinity"
    sigma, count, m2 = tensors["sigma"], tensors["count"], tensors["m2"]
    if (sigma <= 0).any() or (sigma.diff() >= 0).any():
        return "sigma is not positive and strictly decreasing"
    if (count <= 0).any() or (count > MOST_COUNT).any():
        return f"count is not between 1 and {MOST_COUNT}"
    if (tensors["mean"].abs() > MOST_VALUE).any():
        return f"tensor mean holds values beyond {MOST_VALUE:g}"
    if sigma[0] > MOST_VALUE:
        return f"tensor sigma holds values beyond {MOST_VALUE:g}"
    fault = _moments_fault(count, m2, tensors["variance"])
    if fault is None and "run_variance" in tensors:
        fault = range_fault("run_variance", tensors["run_variance"], 0.0, MOST_VALUE**2)
    for name, low in (("layer_sigma_end", 0.0), ("layer_offset", -MOST_VALUE)):
        if fault is None and name in tensors:
            fault = range_fault(name, tensors[name], low, MOST_VALUE)
    if fault is None and "state_sigma" in tensors:
        fault = _state_fault(tensors, float(sigma[0]))
    return fault


def _state_fault(tensors: Mapping[str, Tensor], start: float) -> str | None:
    levels = tensors["state_sigma"]
    if (levels < 0).any() or (levels.diff() >= 0).any():
        return "state_sigma is not strictly decreasing down to 0 or more"
    if levels[0] >= start:
        return "state_sigma does not begin below the first sigma, where the first step does"
    for suffix in ("", "_drift", "_layers"):
        if f"state_scale{suffix}" in tensors:
            fault = map_fault(tensors[f"state_scale{suffix}"], tensors[f"state_shift{suffix}"], suffix)
            if fault:
                return fault
    return None


def derived_variance(count: Tensor, m2: Tensor) -> Tensor:
    """The conditional variance (S, C) float32 that goes with count (S,) and m2 (S, 3, C)."""
    return (explained(m2)[1] / count[:, None]).float()


def _moments_fault(count: Tensor, m2: Tensor, variance: Tensor) -> str | None:
    square, product, error = m2.unbind(1)
    if (square < 0).any() or (error < 0).any():
        return "tensor m2 has a negative variance"
    # Rounding of long sums may exceed Cauchy-Schwarz by about 1e-12.
    if (product.abs() > square.sqrt() * error.sqrt() * (1 + 1e-6)).any():
        return "tensor m2 has a covariance beyond what its variances allow (Cauchy-Schwarz)"
    if (m2.abs() > MOST_VALUE**2 * count[:, None, None]).any() or (explained(m2)[0].abs() > MOST_VALUE).any():
        return f"tensor m2 gives deviations or slopes beyond {MOST_VALUE:g}"
    if (variance < 0).any():
        return "tensor variance is negative"
    # float32 rounds to 6e-8; the difference that gives V cancels down to 1e-16 of the unconditional variance.
    total = error / count[:, None]
    derived = derived_variance(count, m2)
    if ((variance - derived).double().abs() > 1e-5 * derived.double() + 1e-9 * total + 1e-37).any():
        return "tensor variance is not the conditional variance that follows from m2"
    return None
