"""What a hard micrograin clamp costs, next to other ways to the same bounds. Prints a markdown table of ratios.

    python benchmarks/quantile.py [--threads 2] [--device cuda] [--repetitions 15]

Every contestant clamps the same latent and the whole clamp is timed. A cell is the ratio of two medians of one run, so
other work on the machine blurs the ratios less than the times.
"""

from __future__ import annotations

import argparse
from functools import partial

import _gimbal  # noqa: F401  (registers the package)
import torch
from _timing import medians
from torch import Tensor

from gimbal.core.micrograin import micrograin
from gimbal.core.shapes import expand_like

Q_LOW, Q_HIGH = 0.001, 0.999
SHAPES = [(1, 16, 21, 90, 160), (1, 4, 640, 640), (1, 4, 128, 128), (1, 16, 128, 128), (4, 4, 128, 128)]
LARGEST_SORTED = 2**24  # torch.quantile takes no more


def gimbal_clamp(x: Tensor) -> Tensor:
    return micrograin(x, Q_LOW, Q_HIGH)


def topk_clamp(x: Tensor) -> Tensor:
    flat = x.flatten(1)
    rank = Q_LOW * (flat.shape[1] - 1)
    below, weight = int(rank), rank % 1
    smallest = flat.topk(below + 2, dim=1, largest=False).values
    largest = flat.topk(below + 2, dim=1).values
    low, high = (torch.lerp(end[:, below], end[:, below + 1], weight) for end in (smallest, largest))
    return clamp(x, low, high)


def aminmax_clamp(x: Tensor) -> Tensor:
    flat = x.flatten(1)
    low, high = flat.aminmax() if len(flat) == 1 else flat.aminmax(dim=1)
    return clamp(x, low, high)


def quantile_clamp(x: Tensor) -> Tensor:
    flat = x.flatten(1)
    return clamp(x, *torch.quantile(flat, flat.new_tensor([Q_LOW, Q_HIGH]), dim=1))


def clamp(x: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """With the fastest form of bounds each device has, so that the contestants differ in the quantiles alone."""
    if x.device.type == "cpu" and x.shape[0] == 1:
        return x.clamp(low.item(), high.item())
    return x.clamp(expand_like(low, x), expand_like(high, x))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repetitions", type=int, default=15)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    print(
        f"torch {torch.__version__}, {options.device}, {options.threads} threads, q = {Q_LOW} / {Q_HIGH}, hard clamp\n"
    )
    print("| latent | elements | ours, ms | two topk / ours | torch.quantile / ours | ours / aminmax |")
    print("|---|---|---|---|---|---|")
    for shape in SHAPES:
        x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(options.device)
        contestants = {"ours": gimbal_clamp, "topk": topk_clamp, "aminmax": aminmax_clamp}
        if x[0].numel() <= LARGEST_SORTED:
            contestants["quantile"] = quantile_clamp
        calls = {name: partial(clamp_by, x) for name, clamp_by in contestants.items()}
        torch.testing.assert_close(gimbal_clamp(x), topk_clamp(x), rtol=0, atol=1e-6)
        time_of = medians(calls, options.repetitions, options.device)
        ours = time_of["ours"]
        sorting = f"{time_of['quantile'] / ours:.1f}" if "quantile" in time_of else "refused"
        cells = [
            "x".join(map(str, shape)),
            f"{x.numel():,}",
            f"{ours * 1000:.2f}",
            f"{time_of['topk'] / ours:.2f}",
            sorting,
            f"{ours / time_of['aminmax']:.2f}",
        ]
        print("| " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
