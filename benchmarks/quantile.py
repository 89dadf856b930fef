"""What a hard micrograin clamp costs, next to other ways to the same bounds. Prints a markdown table of ratios.

    python benchmarks/quantile.py [--threads 2] [--device cuda] [--repetitions 15]

Every contestant clamps the same latent and the whole clamp is timed. A cell is the ratio of two medians of one run, so
other work on the machine blurs the ratios less than the times.
"""

from __future__ import annotations

from functools import partial

import _gimbal  # noqa: F401  makes `gimbal` importable
import torch
from _speed import medians, options, print_head, print_row, size
from torch import Tensor

from gimbal.core.micrograin import micrograin
from gimbal.core.shapes import expand_like

Q_LOW, Q_HIGH = 0.001, 0.999
SHAPES = ((1, 16, 21, 90, 160), (1, 4, 640, 640), (1, 4, 128, 128), (1, 16, 128, 128), (4, 4, 128, 128))
LARGEST_SORTED = 2**24  # torch.quantile takes no more


def gimbal_clamp(x: Tensor) -> Tensor:
    return micrograin(x, Q_LOW, Q_HIGH)


def topk_clamp(x: Tensor) -> Tensor:
    flat = x.flatten(1)
    rank = Q_LOW * (flat.shape[1] - 1)
    below, weight = int(rank), rank % 1
    smallest = flat.topk(below + 2, dim=1, largest=False).values
    largest = flat.topk(below + 2, dim=1).values
    return clamp(x, *(torch.lerp(end[:, below], end[:, below + 1], weight) for end in (smallest, largest)))


def aminmax_clamp(x: Tensor) -> Tensor:
    flat = x.flatten(1)
    return clamp(x, *(flat.aminmax() if len(flat) == 1 else flat.aminmax(dim=1)))


def quantile_clamp(x: Tensor) -> Tensor:
    flat = x.flatten(1)
    return clamp(x, *torch.quantile(flat, flat.new_tensor([Q_LOW, Q_HIGH]), dim=1))


def clamp(x: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """With the fastest form of bounds each device has, so that the contestants differ in the quantiles alone."""
    if x.device.type == "cpu" and x.shape[0] == 1:
        return x.clamp(low.item(), high.item())
    return x.clamp(expand_like(low, x), expand_like(high, x))


CONTESTANTS = {"ours": gimbal_clamp, "topk": topk_clamp, "aminmax": aminmax_clamp, "quantile": quantile_clamp}


def main() -> None:
    given = options(__doc__, repetitions=15)
    ratios = ("two topk / ours", "torch.quantile / ours", "ours / aminmax")
    print_head(given, "latent", "elements", "ours, ms", *ratios)
    for shape in SHAPES:
        x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(given.device)
        torch.testing.assert_close(gimbal_clamp(x), topk_clamp(x), rtol=0, atol=1e-6)
        refused = () if x[0].numel() <= LARGEST_SORTED else ("quantile",)
        calls = {name: partial(contestant, x) for name, contestant in CONTESTANTS.items() if name not in refused}
        times = medians(calls, given.repetitions, given.device)
        ours = times["ours"]
        sorting = "refused" if refused else f"{times['quantile'] / ours:.1f}"
        cells = (f"{1e3 * ours:.2f}", f"{times['topk'] / ours:.2f}", sorting, f"{ours / times['aminmax']:.2f}")
        print_row(size(shape), f"{x.numel():,}", *cells)


if __name__ == "__main__":
    main()
