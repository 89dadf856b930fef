"""Beside the methods: each limit once on real latents, and the network's precision."""

from __future__ import annotations

import math
from collections.abc import Iterator

from . import qsilk, samg
from .judge import Judge
from .model import decode_unclipped, latent, letters
from .runs import GuidedRow, Results

FIRST_SEED = 7000  # of real pictures: used nowhere else
UNTOUCHED = "untouched"
# Runs that are made again in float32 where the others are not, and the part they come from.
CHECKED = {
    "CFG, 4": samg.rows,
    "quantile, 2": samg.rows,
    "plain, 9, 8 euler": qsilk.rows,
    "AQClip gentle, 9, 8 euler": qsilk.rows,
}
PRECISION_SEEDS = 2
SAME_AT_ONCE = (qsilk.PLAIN, "AQClip gentle, no average")  # nothing; and the same as its like with nothing to average


def measure_real(samples: int, seed: int, judge: Judge, results: Results) -> None:
    """Each limit of `qsilk` once on latents of real pictures; what it changes is loss."""
    pictures, labels = letters.pictures(samples, FIRST_SEED + seed)
    clean = latent.encode(pictures)
    kept = decode_unclipped(clean).clamp(-1, 1)
    if results.lacks(UNTOUCHED):
        results.add(UNTOUCHED, judge.measures(clean, labels))
    for name, make in qsilk.LIMITS.items():
        if name in SAME_AT_ONCE or not results.lacks(name):
            continue
        limited = make()(clean)
        error = (decode_unclipped(limited).clamp(-1, 1) - kept).square().mean()
        change = (limited - clean).square().mean() / clean.var()
        extra = {"psnr": 10 * math.log10(4 / float(error)) if error else 999.0, "change": float(change)}
        results.add(name, judge.measures(limited, labels) | extra)


def rows() -> Iterator[GuidedRow]:
    for name, source in CHECKED.items():
        yield next(row for row in source() if row.name == name)
