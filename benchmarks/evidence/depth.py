"""How rounding errors grow over the depth of a network, and what the corrections leave of them: 3 blocks against 9.

Two demo models, as ComfyUI loads and samples them: the letters flow model, and the picture model.
"""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .depth_models import Subject, ends, execute, quantized_model, velocity
from .formats import HEAVY, MILD, NumberFormat
from .model import recognise
from .runs import Results
from .subjects import noise

from gimbal.calibration.trial import compared  # isort: skip

STEPS, CFG = 20, 3.0
LEVELS = (0, 5, 10, 15, 19)  # steps at which errors inside the network are measured
RUNS = 5  # of a calibration
CORRECTIONS = ("moments", "layers", "layers and moments")
PLAIN, GROWTH = "quantized", "growth"
FORMATS = (HEAVY[2], MILD[0], MILD[2])


def name(form: NumberFormat, what: str) -> str:
    return f"{form.name}; {what}"


def rows() -> Iterator[tuple[NumberFormat, str]]:
    for form in FORMATS:
        for what in (GROWTH, PLAIN, *CORRECTIONS):
            yield form, what


class Bench:
    """One subject's rows. A format is calibrated once for all seeds, on prompts that none of them samples."""

    def __init__(self, subject: Subject, folder: Path) -> None:
        self.subject, self.folder = subject, folder
        self._corrected: dict[str, dict[str, Any]] = {}
        self._full: dict[int, Tensor] = {}

    def measure(self, results: Results) -> None:
        """What the results of a seed lack."""
        seed = results.about["seed"]
        for form, what in rows():
            if results.lacks(name(form, what)):
                if what == GROWTH:
                    found = growth(self.subject, form, seed)
                else:
                    found = {"error": self._error(form, what, seed)}
                results.add(name(form, what), found)
                print(f"{self.subject.name}, seed {seed}: {name(form, what)}", flush=True)

    def _error(self, form: NumberFormat, what: str, seed: int) -> float:
        """Mean squared difference of the final latents to full precision's, by that one's variance."""
        if seed not in self._full:
            self._full[seed] = ends(self.subject, self.subject.model, STEPS, CFG, seed)
        if form.name not in self._corrected:
            self._corrected[form.name] = corrected(self.subject, form, self.folder)
        model = self._corrected[form.name][what]
        return compared(ends(self.subject, model, STEPS, CFG, seed), self._full[seed])[0]


def corrected(subject: Subject, form: NumberFormat, folder: Path) -> dict[str, Any]:
    """The quantized MODEL plain and under each correction, by the pack's own nodes."""
    import folder_paths

    model = quantized_model(subject, form)
    positive, negative = subject.conditioning(subject.calibrated)
    folder_paths.models_dir = str(folder)
    given = {"cfg": CFG, "sampler_name": "euler", "scheduler": "simple", "steps": STEPS, "runs": RUNS}
    given |= {"first_seed": 100_000, "held_out": 0, "prompts": "", "negative_prompt": "", "mode": "two passes"}
    statistics = execute(
        "qdrift_calibrate.GimbalQDriftCalibrate",
        full_model=subject.model,
        quantized_model=model,
        latent={"samples": subject.empty(len(subject.calibrated))},
        positive=positive,
        negative=negative,
        correction="drift and moments",
        trim=0.0,
        filename=f"depth_{subject.name}",
        **given,
    )
    how = {"strength": 1.0, "channels": "scalar", "rule": "auto", "variance": "conditional", "bias": "off"}
    how |= {"unsupported": "stop with an error", "start_percent": 0.0, "end_percent": 1.0}
    made = {each: execute("qdrift.GimbalQDrift", model, statistics, correction=each, **how) for each in CORRECTIONS}
    return {PLAIN: model, **made}


def growth(subject: Subject, form: NumberFormat, seed: int) -> dict[str, float]:
    """Errors inside the network at states of full precision's trajectory, mean over LEVELS.

    Each is a mean square over samples, positions and channels, by the variance of full precision's values, of each channel
    over samples and positions.

    Returns:
        "after i": of the residual stream behind block i, 1 being the first, all blocks rounded. "own i": there, block i
        alone rounded. "output": of the network's velocity, all blocks rounded. "alone i": there, block i alone.
    """
    full = subject.network
    rounded = form.quantize(full)
    depth = len(subject.blocks(full))
    variants = {0: rounded} | {i + 1: _with_block(subject, full, rounded, i) for i in range(depth)}
    totals: dict[str, float] = {}
    for x, sigma, context in _states(subject, seed):
        wanted = _trace(subject, full, x, sigma, context)
        for which, network in variants.items():
            errors = [_error(*pair) for pair in zip(_trace(subject, network, x, sigma, context), wanted, strict=True)]
            found = {"output": errors[-1]} | {f"after {i}": error for i, error in enumerate(errors[:-1], 1)}
            if which:
                found = {f"own {which}": errors[which - 1], f"alone {which}": errors[-1]}
            for key, error in found.items():
                totals[key] = totals.get(key, 0.0) + error / len(LEVELS)
    return totals


def _with_block(subject: Subject, full: nn.Module, rounded: nn.Module, index: int) -> nn.Module:
    """Full precision but for one block."""
    mixed = deepcopy(full)
    subject.blocks(mixed)[index] = subject.blocks(rounded)[index]
    return mixed


def _states(subject: Subject, seed: int) -> Iterator[tuple[Tensor, float, Any]]:
    """Full precision's states at LEVELS, guided Euler, and what the network is called with there."""
    asked = subject.asked
    x = noise(len(asked), seed).reshape(subject.empty(len(asked)).shape)
    context, nothing = subject.context(asked), subject.context([""] * len(asked))
    for step, (sigma, following) in enumerate(pairwise(recognise.schedule(STEPS))):
        if step in LEVELS:
            yield x, sigma, context
        cond, uncond = (velocity(subject.network, x, sigma, each) for each in (context, nothing))
        x = x + torch.lerp(uncond, cond, CFG) * (following - sigma)


def _trace(subject: Subject, network: nn.Module, x: Tensor, sigma: float, context: Any) -> list[Tensor]:
    """The residual stream behind each block (N, positions, width), and the velocity as (N, positions, C)."""
    found: list[Tensor] = []

    def note(module: nn.Module, given: Any, output: Any) -> None:
        found.append((output[-1] if isinstance(output, tuple) else output).clone())

    hooks = [block.register_forward_hook(note) for block in subject.blocks(network)]
    try:
        output = velocity(network, x, sigma, context)
    finally:
        for hook in hooks:
            hook.remove()
    return [*found, output.flatten(2).transpose(1, 2)]


def _error(found: Tensor, wanted: Tensor) -> float:
    """(N, positions, channels)."""
    spread = (wanted - wanted.mean((0, 1))).square().mean()
    return float((found - wanted).square().mean() / spread)
