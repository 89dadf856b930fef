"""How far a sample is from full precision's in what people see of it: colours, grain, composition. No classifier."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

COMPOSITION_CYCLES = 4.0  # per picture's height and width: the coarsest forms, whatever the picture's size
FINEST = 0.4  # cycles per position, of at most 0.5 along an axis: the last fifth of the spectrum, and its corners
FAINT = 1e-6  # of a picture's power: with less at the finest frequencies there is no grain whose ratio could be told

Decode = Callable[[Tensor], Tensor]  # (B, C, *spatial) to the picture (B, 3, *spatial)


class Measures(NamedTuple):
    """Of each picture of a batch, (B,) float64.

    Attributes:
        error: mean squared difference of the latent by full precision's variance in the batch.
        colour: root of the squared differences of the picture's channels' means and deviations, summed, by the sum of
            full precision's variances: how far colours and contrast are off, as a share of the contrast.
        grain: natural logarithm of the power at the finest spatial frequencies over full precision's. Positive: more.
        composition: root of the squared difference at the coarsest spatial frequencies, without the mean, by full
            precision's power there.
    """

    error: Tensor
    colour: Tensor
    grain: Tensor
    composition: Tensor


def measured(sample: Tensor, full: Tensor, decode: Decode | None = None) -> Measures:
    """Of a batch of latents against full precision's.

    Args:
        sample, full: (B, C, *spatial), on the CPU. Of video every frame is a picture, and a sample's frames go together.
        decode: to the picture whose colours are compared, linear; without it the latent's own channels are.
    Raises:
        ValueError: shapes differ, or full precision's sample is constant.
    """
    if sample.shape != full.shape or sample.ndim < 3:
        raise ValueError(
            f"measured: sample {tuple(sample.shape)} and full {tuple(full.shape)}; pass two (B, C, *spatial) of one shape."
        )
    ours, theirs = _frames(sample), _frames(full)
    power = float(theirs.transpose(0, 1).flatten(1).var(1, correction=0).mean())
    if power == 0.0:
        raise ValueError(
            "the full-precision sample is constant, so nothing can be compared with it; look at its picture."
        )
    error = (ours - theirs).square().flatten(1).mean(1) / power
    pictures = (ours, theirs) if decode is None else (_frames(decode(sample)), _frames(decode(full)))
    coarse, fine = _bands(theirs)
    spectra = [torch.fft.fft2(part).abs().square() for part in (ours, theirs, ours - theirs)]
    return Measures(
        error,
        _colour(*pictures),
        _grain(spectra[0], spectra[1], fine, FAINT * power * theirs[0].numel() * fine.numel()),
        _share((spectra[2] * coarse).flatten(1).sum(1), (spectra[1] * coarse).flatten(1).sum(1).mean()).sqrt(),
    )


def _frames(latent: Tensor) -> Tensor:
    """(B, C, F, H, W) float64: sound and rows of tokens have one row, pictures one frame."""
    shape = latent.shape
    rows = (1, shape[2]) if len(shape) == 3 else shape[-2:]
    return latent.double().reshape(*shape[:2], -1, *rows)


def _colour(ours: Tensor, theirs: Tensor) -> Tensor:
    spread = [part.var((3, 4), correction=0) for part in (ours, theirs)]  # (B, C, F)
    apart = (ours.mean((3, 4)) - theirs.mean((3, 4))).square() + (spread[0].sqrt() - spread[1].sqrt()).square()
    return _share(apart.sum(1).mean(1), spread[1].sum(1).mean()).sqrt()


def _grain(ours: Tensor, theirs: Tensor, fine: Tensor, floor: float) -> Tensor:
    powers = [(part * fine).flatten(1).sum(1) + floor for part in (ours, theirs)]
    return (powers[0] / powers[1]).log()


def _bands(latent: Tensor) -> tuple[Tensor, Tensor]:
    """Masks (H, W) of the coarsest spatial frequencies and of the finest."""
    height, width = latent.shape[-2:]
    down, across = (torch.fft.fftfreq(size, dtype=torch.float64) for size in (height, width))
    cycles = torch.hypot((down * height)[:, None], (across * width)[None])
    coarse = (cycles > 0) & (cycles <= COMPOSITION_CYCLES)
    return coarse, torch.hypot(down[:, None], across[None]) >= FINEST


def _share(part: Tensor, whole: Tensor) -> Tensor:
    """part / whole, and 0 where there is no whole: what full precision has nothing of is not judged."""
    return part / whole if float(whole) > 0.0 else torch.zeros_like(part)


def percent_more(log_ratio: float) -> float:
    """Of a logarithm of powers, as a share: 0.1 is 10 % more."""
    return math.expm1(log_ratio)
