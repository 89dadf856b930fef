"""From a calibrating node's inputs: the schedule that all its runs have in common, and the runs."""

from __future__ import annotations

from comfy.sd import CLIP

from .. import identity
from .model_pair import Traits
from .sampling_runs import CalibrationRun, Conditioning, Schedule, sigmas_for


def make_schedule(
    node: str,
    model: object,
    traits: Traits,
    latent: dict,
    cfg: float,
    sampler: str,
    scheduler: str,
    steps: int,
    sigmas,
) -> Schedule:
    """ValueError for latents and schedules that cannot be calibrated with."""
    samples = latent["samples"]
    if samples.is_nested:
        raise ValueError(
            f"{node}: latent packs several parts (video and audio) into one, which cannot be told apart; "
            "calibrate with a plain image or video latent."
        )
    if latent.get("noise_mask") is not None:
        raise ValueError(
            f"{node}: latent carries a noise mask, under which the picture is not the model's; "
            "connect an empty latent of the same size."
        )
    if samples.shape[1] != traits.channels and bool(samples.any()):
        raise ValueError(
            f"{node}: latent has {samples.shape[1]} channels, the model {traits.channels}; connect an empty latent "
            "made for this model."
        )
    if sigmas is None:
        sigmas = sigmas_for(model, sampler, scheduler, steps)
    else:
        sigmas, scheduler = sigmas.detach().cpu().float(), "given sigmas"
    if len(sigmas) < 2 or bool((sigmas.diff() >= 0).any()) or not bool((sigmas >= 0).all()):
        raise ValueError(
            f"{node}: sigmas must be two or more falling noise levels, got {sigmas.tolist()!r:.200}; use a scheduler."
        )
    index = latent.get("batch_index")
    return Schedule(samples, None if index is None else tuple(index), cfg, sampler, scheduler, sigmas)


def make_runs(
    node: str, cfg: float, seeds: list[int], positive, negative, clip, prompts: str, negative_prompt: str
) -> tuple[CalibrationRun, ...]:
    """One run a seed. ValueError unless prompts come in exactly one of the two ways."""
    lines = [line.strip() for line in prompts.splitlines() if line.strip()]
    if (positive is None) == (not lines):
        both = "are both given" if lines else "are both missing"
        raise ValueError(
            f"{node}: positive and prompts {both}; connect positive (and negative), or write prompts and connect clip."
        )
    if positive is not None:
        if negative is None and cfg != 1.0:
            raise ValueError(f"{node}: negative is missing at cfg {cfg:g}; connect it, or set cfg to 1.")
        pairs = [(positive, positive if negative is None else negative)]
    elif clip is None:
        raise ValueError(f"{node}: clip is missing; connect the model's text encoder, or connect positive instead.")
    elif negative is not None:
        raise ValueError(f"{node}: negative goes with positive; with prompts, write negative_prompt.")
    else:
        without = _encoded(clip, negative_prompt)
        pairs = [(_encoded(clip, line), without) for line in lines[: len(seeds)]]
    digests = [identity.digest(*pair) for pair in pairs]
    return tuple(CalibrationRun(seed, *pairs[i % len(pairs)], digests[i % len(pairs)]) for i, seed in enumerate(seeds))


def _encoded(clip: CLIP, text: str) -> Conditioning:
    return clip.encode_from_tokens_scheduled(clip.tokenize(text))


def consecutive_seeds(first: int, runs: int) -> list[int]:
    return [first + i for i in range(runs)]
