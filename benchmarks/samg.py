"""Cost of SAMG (energy, scale map and guided prediction) as a multiple of the plain CFG combine, as a markdown table.

    python benchmarks/samg.py [--device cuda] [--threads 1] [--runs 60]

The settings and the combine take turns, call by call, and the medians are compared: a change of load meets all. On a
busy machine use one thread: parallel sections otherwise wait for each other's scheduling.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from functools import partial

import _gimbal  # noqa: F401  makes `gimbal` importable
import torch
from _timing import medians
from torch import Tensor

from gimbal.core.samg import samg

SHAPES = ((1, 4, 128, 128), (1, 16, 128, 128), (4, 16, 128, 128), (1, 16, 21, 90, 160))
SETTINGS = tuple((normalize, curve) for normalize in ("minmax", "quantile") for curve in ("linear", "bound"))


def plain_cfg(cond: Tensor, uncond: Tensor, cfg: float) -> Tensor:
    return uncond + cfg * (cond - uncond)


def table_row(shape: tuple[int, ...], runs: int, device: torch.device) -> str:
    cond, uncond = (torch.randn(shape, generator=torch.Generator().manual_seed(i)).to(device) for i in range(2))
    calls = {"plain": partial(plain_cfg, cond, uncond, 7.5)}
    calls |= {setting: partial(samg, cond, uncond, 5.0, 12.0, *setting) for setting in SETTINGS}
    times = medians(calls, runs, device)
    plain = times.pop("plain")
    ratios = [f"{ours / plain:.2f}" for ours in times.values()]
    return f"| {'x'.join(map(str, shape))} | {1e6 * plain:.0f} | {' | '.join(ratios)} |"


def table(runs: int, device: torch.device) -> Iterator[str]:
    threads = torch.get_num_threads()
    yield f"torch {torch.__version__}, {device}, {threads} thread(s), medians of {runs} runs, multiples of plain CFG\n"
    yield f"| shape | plain CFG, us | {' | '.join(' '.join(setting) for setting in SETTINGS)} |"
    yield f"|---|---|{'---|' * len(SETTINGS)}"
    with torch.inference_mode():
        for shape in SHAPES:
            yield table_row(shape, runs, device)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", type=torch.device, default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--runs", type=int, default=60)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    for line in table(options.runs, options.device):
        sys.stdout.write(line + "\n")


if __name__ == "__main__":
    main()
