"""A recorded trajectory's settings, as this ComfyUI understands them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import comfy.samplers

from ...calibration.text import printable
from ...calibration.trajectory_header import read_header
from .model_pair import Traits
from .sampling_runs import Schedule

SETTINGS = ("key", "seeds", "held_out", "prompts", "full_model", "full_digest")


def recorded(folder: Path) -> tuple[dict[str, Any], Traits, Schedule]:
    """What a trajectory's header says. ValueError if it does not say all, or names what this ComfyUI lacks."""
    settings, tensors = read_header(folder)
    if settings["sampler"] not in comfy.samplers.KSampler.SAMPLERS:
        raise ValueError(
            f"{printable(folder, None)}: it was recorded with sampler {printable(settings['sampler'], 80)!r}, which this ComfyUI "
            "does not have; install what brings it, or record it again."
        )
    index = settings["batch_index"]
    schedule = Schedule(
        tensors["latent"],
        None if index is None else tuple(index),
        settings["cfg"],
        settings["sampler"],
        settings["scheduler"],
        tensors["sigmas"],
    )
    return {name: settings[name] for name in SETTINGS}, Traits(**settings["traits"]), schedule
