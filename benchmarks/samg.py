"""Cost of SAMG (energy, scale map and guided prediction) as a multiple of the plain CFG combine, as a markdown table.

    python benchmarks/samg.py [--device cuda] [--threads 1] [--runs 60]

Each setting alternates with the combine it is compared with, call by call, and the medians are compared: a change of
load meets both. On a busy machine use one thread: parallel sections otherwise wait for each other's scheduling.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial

import _gimbal  # noqa: F401  makes `gimbal` importable
import torch
from torch import Tensor

from gimbal.core.samg import samg

SHAPES = ((1, 4, 128, 128), (1, 16, 128, 128), (4, 16, 128, 128), (1, 16, 21, 90, 160))
SETTINGS = tuple((normalize, curve) for normalize in ("minmax", "quantile") for curve in ("linear", "bound"))
WARMUP = 10


def plain_cfg(cond: Tensor, uncond: Tensor, cfg: float) -> Tensor:
    return uncond + cfg * (cond - uncond)


def seconds(call: Callable[[], Tensor], device: torch.device) -> float:
    start = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def medians(
    call: Callable[[], Tensor], baseline: Callable[[], Tensor], runs: int, device: torch.device
) -> tuple[float, float]:
    """Median seconds of call and of baseline, alternating."""
    pairs = [(seconds(call, device), seconds(baseline, device)) for _ in range(WARMUP + runs)][WARMUP:]
    ours, plain = zip(*pairs, strict=True)
    return statistics.median(ours), statistics.median(plain)


def table_row(shape: tuple[int, ...], runs: int, device: torch.device) -> str:
    cond, uncond = (torch.randn(shape, generator=torch.Generator().manual_seed(i)).to(device) for i in range(2))
    baseline = partial(plain_cfg, cond, uncond, 7.5)
    ratios, baselines = [], []
    for normalize, curve in SETTINGS:
        ours, plain = medians(partial(samg, cond, uncond, 5.0, 12.0, normalize, curve), baseline, runs, device)
        ratios.append(f"{ours / plain:.2f}")
        baselines.append(plain)
    return f"| {'x'.join(map(str, shape))} | {1e6 * statistics.median(baselines):.0f} | {' | '.join(ratios)} |"


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
    # Until a block this large has been freed, glibc asks the system for every large block anew, as it does not in a
    # process that has run a model; then page faults would be timed.
    torch.ones(7 << 20)
    for line in table(options.runs, options.device):
        sys.stdout.write(line + "\n")


if __name__ == "__main__":
    main()
