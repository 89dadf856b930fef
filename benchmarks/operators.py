"""Operators that each kernel asks of an accelerator in one step, as a markdown table.

    python benchmarks/operators.py

Counted on the meta device, so that no accelerator is needed; views cost nothing and do not count. The last column is the
share of a step of 30 ms (SDXL on a fast GPU) that the most costly dtype takes at 5 us an operator, where launching
rather than computing takes the time.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from functools import partial

import _gimbal
import torch
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


def rows() -> Iterator[str]:
    yield f"| kernel | latent | {' | '.join(str(dtype).removeprefix('torch.') for dtype in DTYPES)} | of a step |"
    yield f"|---|---|{'---|' * (len(DTYPES) + 1)}"
    for name, kernel in KERNELS.items():
        for shape in (IMAGE, VIDEO):
            counts = [operators(partial(kernel, _meta(shape, dtype))) for dtype in DTYPES]
            yield _row(name, shape, counts)
    yield _row("Moment matching, a step", IMAGE, [_matching_step(dtype) for dtype in DTYPES])


def _row(name: str, shape: tuple[int, ...], counts: list[int]) -> str:
    share = max(counts) * LAUNCH / STEP
    return f"| {name} | {'x'.join(map(str, shape))} | {' | '.join(map(str, counts))} | {share:.1%} |"


def _matching_step(dtype: torch.dtype) -> int:
    matching, x = MomentMatcher([(torch.ones(4), torch.zeros(4))] * 2), _meta(IMAGE, torch.float32)
    matching(0, x)  # sends all maps ahead
    return operators(lambda: matching(1, x))


def _meta(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return torch.empty(shape, device="meta", dtype=dtype)


if __name__ == "__main__":
    print("\n".join(rows()))
