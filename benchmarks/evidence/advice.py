"""What a calibration's trial on held-out runs advises, by the pack's own candidates and rule."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from gimbal.calibration.correctors import CORRECTORS, MOMENTS
from gimbal.calibration.trial import PLAIN, Trial, compared

from . import calibrate
from .paired_sampler import PairedSampler

RUNS = 2  # held out, the node's default
CANDIDATES = (PLAIN, 0.0), *((name, strength) for name, kind in CORRECTORS.items() for strength in kind.tried)
Sample = Callable[[str, PairedSampler], Tensor]  # latents by a correction's name, at full strength


def advised(sampler: PairedSampler, sample: Sample) -> Tensor:
    """Latents, by the correction that the trial advises."""
    found = trial(sampler.held_out(RUNS), sample).advice()
    return _sample(sampler, sample, found.correction or PLAIN, found.strength)


def trial(sampler: PairedSampler, sample: Sample) -> Trial:
    full = sampler.sample(full=True)
    each = [_sample(sampler, sample, *candidate) for candidate in CANDIDATES]
    pairs = [[compared(ours[i : i + 1], full[i : i + 1]) for i in range(len(full))] for ours in each]
    error, distance = (tuple(tuple(run[part] for run in runs) for runs in pairs) for part in (0, 1))
    return Trial(CANDIDATES, error, distance)


def _sample(sampler: PairedSampler, sample: Sample, name: str, strength: float) -> Tensor:
    if name == PLAIN:
        return sampler.sample()
    if strength == 1.0:
        return sample(name, sampler)
    if name != MOMENTS:
        raise ValueError(f"{name} at strength {strength} has no row here.")
    return sampler.sample(maps=calibrate.shared_out(sampler.maps(), sampler.sigmas, sampler.sigmas, strength))
