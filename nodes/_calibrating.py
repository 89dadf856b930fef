"""What the calibrating nodes ask for, worded once, and what they make of it."""

from __future__ import annotations

import comfy.samplers
from comfy_api.latest import io

from ..host import identity
from ..host.calibrating.calibration import CORRECTIONS
from ..host.calibrating.sampling_runs import Conditioning, Run, Schedule, sigmas_for
from ..host.calibrating.twins import Traits

Statistics = io.Custom("QDRIFT_STATS")


def full_model() -> io.Input:
    return io.Model.Input(
        "full_model", tooltip="The model in full precision, or the best there is (bf16, fp16, Q8_0)."
    )


def quantized_model() -> io.Input:
    return io.Model.Input(
        "quantized_model",
        tooltip="The same model, quantized, with the same LoRAs and sampling nodes behind it, if any.",
    )


def prompts() -> list[io.Input]:
    return [
        io.Conditioning.Input("positive", optional=True, tooltip="Used in every run. Or give prompts and a CLIP."),
        io.Conditioning.Input(
            "negative", optional=True, tooltip="Used in every run. Needed with positive, but at cfg 1."
        ),
        io.Clip.Input("clip", optional=True, tooltip="Encodes the prompts. Leave it out with positive connected."),
        io.String.Input(
            "prompts",
            default="",
            multiline=True,
            tooltip="In place of positive: one prompt a line, taken in turn by the runs. Empty: positive is used.",
        ),
        io.String.Input("negative_prompt", default="", tooltip="In place of negative, for all prompts. May be empty."),
    ]


def schedule() -> list[io.Input]:
    return [
        io.Latent.Input("latent", tooltip="An empty latent of the size and batch to calibrate at."),
        io.Float.Input(
            "cfg",
            default=7.0,
            min=0.0,
            max=100.0,
            step=0.1,
            round=0.01,
            tooltip="Guidance, as you will sample: it magnifies the error. 1 runs without a negative.",
        ),
        io.Combo.Input(
            "sampler_name",
            options=list(comfy.samplers.KSampler.SAMPLERS),
            default="euler",
            tooltip="Follows the full-precision trajectory, as you will sample. Every model call of it is compared.",
        ),
        io.Combo.Input(
            "scheduler",
            options=list(comfy.samplers.KSampler.SCHEDULERS),
            default="simple",
            tooltip="Noise levels of the steps. Between them the statistics are interpolated.",
        ),
        io.Int.Input("steps", default=20, min=1, max=1000, tooltip="Sampling steps of a run."),
        io.Sigmas.Input("sigmas", optional=True, tooltip="Noise levels in place of scheduler and steps."),
        io.Int.Input(
            "runs",
            default=5,
            min=1,
            max=1000,
            tooltip="Trajectories. 5 suffice for drift (Q-Drift Sec. 5.4); moments gain a little more from 20.",
        ),
        io.Int.Input(
            "first_seed",
            default=0,
            min=0,
            max=2**63 - 1,
            tooltip="Noise of the first run; the next take the next seeds.",
        ),
        io.Int.Input(
            "held_out",
            default=2,
            min=0,
            max=100,
            tooltip="More runs, kept aside to try the corrections on: what helps there is what Q-Drift's 'advised' takes. "
            "0: no trial, no advice.",
        ),
    ]


def correction() -> io.Input:
    return io.Combo.Input(
        "correction",
        options=list(CORRECTIONS),
        default=CORRECTIONS[0],
        tooltip="drift and moments: also match full precision's mean and deviation, step by step, with all runs together. "
        "About twice the time of drift alone, before the trial; most of the gain on coarse quantization.",
    )


def trim() -> io.Input:
    return io.Float.Input(
        "trim",
        default=0.0,
        min=0.0,
        max=100.0,
        step=0.5,
        tooltip="Leave out positions whose error is this many standard deviations off. 0 leaves nothing out; "
        "4 is what the paper's code does.",
    )


def filename(default: str) -> io.Input:
    return io.String.Input(
        "filename",
        default=default,
        tooltip="Name in models/qdrift. A file of other runs is not overwritten: a number is added.",
    )


def made_schedule(
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


def made_runs(
    node: str, cfg: float, seeds: list[int], positive, negative, clip, prompts: str, negative_prompt: str
) -> tuple[Run, ...]:
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
    return tuple(Run(seed, *pairs[i % len(pairs)], digests[i % len(pairs)]) for i, seed in enumerate(seeds))


def _encoded(clip: object, text: str) -> Conditioning:
    return clip.encode_from_tokens_scheduled(clip.tokenize(text))


def seeds(first: int, runs: int) -> list[int]:
    return [first + i for i in range(runs)]
