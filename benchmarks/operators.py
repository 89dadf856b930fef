"""Operators that each kernel asks of an accelerator in one step, as a markdown table.

    python benchmarks/operators.py

Counted on the meta device, so that no accelerator is needed; views cost nothing and do not count. The last column is the
share of a step of 30 ms (SDXL on a fast GPU) that the most costly dtype takes at 5 us an operator, where launching
rather than computing takes the time.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial

import _gimbal
import torch
from _speed import print_row, size
from torch import Tensor

sys.path.insert(0, str(_gimbal.ROOT))
from devkit.operators import operators
from gimbal.core.aqclip import AQClipState, aqclip
from gimbal.core.match import MomentMatcher
from gimbal.core.micrograin import micrograin
from gimbal.core.samg import samg

IMAGE, VIDEO = (1, 4, 128, 128), (1, 16, 21, 90, 160)
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
STEP, LAUNCH = 30e-3, 5e-6  # seconds
KERNELS: dict[str, Callable[[Tensor], object]] = {
    "Micrograin hard": micrograin,
    "Micrograin smooth": lambda x: micrograin(x, form="smooth"),
    "Micrograin tanh": lambda x: micrograin(x, form="tanh"),
    "AQClip": lambda x: aqclip(x, state=AQClipState()),
    "AQClip, no average": aqclip,
    "AQClip, tile 8, stride 1": lambda x: aqclip(x, 8, 1),
    "SAMG minmax": lambda x: samg(x, x, 5.0, 12.0),
    "SAMG quantile": lambda x: samg(x, x, 5.0, 12.0, "quantile"),
}


def main() -> None:
    columns = [str(dtype).removeprefix("torch.") for dtype in DTYPES]
    print_row("kernel", "latent", *columns, "of a step")
    print(f"|{'---|' * (len(columns) + 3)}")
    for name, kernel in KERNELS.items():
        for shape in (IMAGE, VIDEO):
            print_counts(name, shape, [operators(partial(kernel, _meta(shape, dtype))) for dtype in DTYPES])
    matching, x = MomentMatcher([(torch.ones(4), torch.zeros(4))] * 2), _meta(IMAGE, torch.float32)
    matching(0, x)  # sends all maps ahead
    print_counts("Moment matching, a step", IMAGE, [operators(lambda: matching(1, x))] * len(DTYPES))


def print_counts(name: str, shape: tuple[int, ...], counts: list[int]) -> None:
    print_row(name, size(shape), *counts, f"{max(counts) * LAUNCH / STEP:.1%}")


def _meta(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return torch.empty(shape, device="meta", dtype=dtype)


if __name__ == "__main__":
    main()
