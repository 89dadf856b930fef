"""Cost of SAMG (energy, scale map and guided prediction) as a multiple of the plain CFG combine, as a markdown table.

    python benchmarks/samg.py [--device cuda] [--threads 1] [--repetitions 60]

On a busy machine use one thread: parallel sections otherwise wait for each other's scheduling.
"""

from __future__ import annotations

from functools import partial

import _gimbal  # noqa: F401  makes `gimbal` importable
import torch
from _speed import medians, options, print_head, print_row, size
from torch import Tensor

from gimbal.core.samg import samg, samg_cond

SHAPES = ((1, 4, 128, 128), (1, 16, 128, 128), (4, 16, 128, 128), (1, 16, 21, 90, 160))
NODE = "node"  # what the node computes with its defaults: cond for the CFG that follows, and the maps of its preview
SETTINGS = tuple((normalize, curve) for normalize in ("minmax", "quantile") for curve in ("linear", "bound"))


def plain_cfg(cond: Tensor, uncond: Tensor, cfg: float) -> Tensor:
    return uncond + cfg * (cond - uncond)


@torch.inference_mode()
def main() -> None:
    given = options(__doc__, repetitions=60)
    print_head(given, "shape", "plain CFG, us", *(" ".join(setting) for setting in SETTINGS), NODE)
    for shape in SHAPES:
        cond, uncond = (
            torch.randn(shape, generator=torch.Generator().manual_seed(i)).to(given.device) for i in range(2)
        )
        calls = {"plain": partial(plain_cfg, cond, uncond, 7.5)}
        calls |= {" ".join(setting): partial(samg, cond, uncond, 5.0, 12.0, *setting) for setting in SETTINGS}
        calls[NODE] = partial(samg_cond, cond, uncond, 7.5, (5.0, 12.0), "quantile")
        times = medians(calls, given.repetitions, given.device)
        plain = times.pop("plain")
        print_row(size(shape), f"{1e6 * plain:.0f}", *(f"{seconds / plain:.2f}" for seconds in times.values()))


if __name__ == "__main__":
    main()
