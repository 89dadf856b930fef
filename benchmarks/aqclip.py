"""AQClip against a plain unfold/fold implementation: time, and peak memory in latents, as a markdown table.

    python benchmarks/aqclip.py

They take turns; times are medians. On a busy machine OMP_WAIT_POLICY=passive or --threads 1 is the fairer comparison:
ours is the shorter work in more pieces, threads meet after each, and one that spins while it waits loses whole time
slices to whatever else runs. Peak memory is what a process of its own holds at most beyond what it held before the
call, result included (Linux). About a minute.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path

import _gimbal  # noqa: F401  makes `gimbal` importable
import torch
import torch.nn.functional as F
from _speed import medians, options, print_head, print_row, size
from torch import Tensor

from gimbal.core.aqclip import aqclip

LATENTS = {"5K image": (1, 4, 640, 640), "video": (1, 16, 21, 96, 160)}
FORMS = ("tanh", "smooth")
TILE, STRIDE, ALPHA, KNEE, K_MIN, K_MAX = 32, 16, 2.0, 0.8, 2.5, 4.5
SOBEL = torch.tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]])


def unfold_fold(x: Tensor, form: str) -> Tensor:
    """The same clip with every tile written out; frames go to the batch. For sizes that tile and stride divide."""
    if x.ndim == 5:
        pictures = unfold_fold(x.transpose(1, 2).flatten(0, 1), form)
        return pictures.unflatten(0, (x.shape[0], x.shape[2])).transpose(1, 2)
    image = F.pad(x.mean(1, keepdim=True), (1, 1, 1, 1), mode="replicate")
    gradient = F.conv2d(image, torch.stack((SOBEL, SOBEL.T)).unsqueeze(1)).square().sum(1, keepdim=True).sqrt()
    g = F.avg_pool2d(gradient, TILE, STRIDE).flatten(2)  # (B, 1, tiles)
    certainty = g / g.amax(2, keepdim=True)

    tiles = F.unfold(x, TILE, stride=STRIDE)  # (B, C * TILE^2, tiles)
    variance, m = torch.var_mean(tiles, 1, correction=0, keepdim=True)
    d = (K_MIN + (K_MAX - K_MIN) * certainty) * variance.sqrt()
    if form == "tanh":
        clipped = m + d * torch.tanh(ALPHA * (tiles - m) / (d + 1e-8))
    else:
        core = tiles.clamp(m - KNEE * d, m + KNEE * d)
        excess = tiles - core
        clipped = core + excess / (1.0 + excess.abs() / ((1.0 - KNEE) * d))
    count = F.fold(torch.ones_like(clipped[:1, : TILE * TILE]), x.shape[-2:], TILE, stride=STRIDE)
    return F.fold(clipped, x.shape[-2:], TILE, stride=STRIDE) / count


def gimbal(x: Tensor, form: str) -> Tensor:
    return aqclip(x, TILE, STRIDE, ALPHA, form=form, knee=KNEE, k_min=K_MIN, k_max=K_MAX)


CONTESTANTS: dict[str, Callable[[Tensor, str], Tensor]] = {"unfold/fold": unfold_fold, "gimbal": gimbal}


def print_times(given: argparse.Namespace) -> None:
    """Print the median milliseconds of each contestant, and the largest difference between their results."""
    x = torch.randn(LATENTS[given.latent], generator=torch.Generator().manual_seed(0))
    difference = (unfold_fold(x, given.form) - gimbal(x, given.form)).abs().max().item()
    calls = {name: partial(contestant, x, given.form) for name, contestant in CONTESTANTS.items()}
    times = medians(calls, given.repetitions, given.device)
    print(*(1e3 * seconds for seconds in times.values()), difference)


def print_peak(given: argparse.Namespace) -> None:
    """Print the peak extra memory of one call, in latents."""
    x = torch.randn(LATENTS[given.latent])
    contestant = CONTESTANTS[given.peak]
    contestant(torch.randn(1, 4, 96, 96), given.form)  # loads what the first call loads
    before = memory("VmRSS")
    contestant(x, given.form)
    print((memory("VmHWM") - before) / (x.numel() * x.element_size()))


def memory(field: str) -> int:
    """Bytes this process holds now (VmRSS) or held at most (VmHWM)."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return 1024 * int(status[field].split()[0])


def measure(*arguments: object) -> list[float]:
    """What a process of its own prints when called with these arguments."""
    command = [sys.executable, __file__, *map(str, arguments)]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return [float(number) for number in output.split()]


def print_table(given: argparse.Namespace) -> None:
    print_head(given, "latent", "form", *CONTESTANTS, "faster", "memory unfold/fold", "gimbal", "share", "difference")
    for latent, form in product(LATENTS, FORMS):
        command = ("--threads", given.threads, "--repetitions", given.repetitions, "--latent", latent, "--form", form)
        slow, fast, difference = measure(*command)
        (large,), (small,) = (measure(*command, "--peak", name) for name in CONTESTANTS)
        times = (f"{slow:.1f} ms", f"{fast:.1f} ms", f"{slow / fast:.1f} x")
        peaks = (f"{large:.1f} x", f"{small:.1f} x", f"{small / large:.2f}")
        print_row(f"{latent} {size(LATENTS[latent])}", form, *times, *peaks, f"{difference:.0e}")


def main() -> None:
    given = options(__doc__, repetitions=9, latent=LATENTS, form=FORMS, peak=CONTESTANTS)
    task = print_peak if given.peak else print_times if given.latent else print_table
    task(given)


if __name__ == "__main__":
    main()
