"""The letters flow model as ComfyUI samples it: its loader, its samplers, its nodes around the model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .judge import Judge
from .model import conditioning, decode_unclipped, recognise
from .subjects import noise, weights

KEY = "gimbal.referee"
Patch = Callable[[Any], Any]  # MODEL -> MODEL


class Norms:
    """Root mean square of what guidance adds to the unconditional prediction, in velocity units, of every model call.

    Its wrapper is added first, so that it is the outermost and sees the prediction that the sampler gets.
    """

    def __init__(self) -> None:
        self.found: list[float] = []

    def watch(self, model: Any) -> Any:
        from comfy.patcher_extension import WrappersMP

        uncond: list[Tensor] = []

        def before(args: dict) -> list[Tensor]:
            uncond[:] = [args["conds_out"][1].clone()]  # nodes may write into it
            return args["conds_out"]

        def around(executor: Any, x: Tensor, timestep: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            denoised = executor(x, timestep, *args, **kwargs)
            sigma = timestep.reshape(-1, *[1] * (x.ndim - 1))
            self.found.append(float(((denoised - uncond[0]) / sigma).square().mean().sqrt()))
            return denoised

        watched = model.clone()
        watched.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, KEY, around)
        # Functions, not methods: ComfyUI copies whatever a method belongs to.
        watched.set_model_sampler_pre_cfg_function(before, disable_cfg1_optimization=True)
        return watched

    def mean(self) -> float:
        return sum(self.found) / len(self.found)


class Seed:
    """A seed's starting noise and classes, the same for every rule."""

    def __init__(self, model: Any, count: int, seed: int, judge: Judge) -> None:
        self.model, self.seed, self.judge = model, seed, judge
        self.labels = torch.arange(count) % len(conditioning.CLASSES)
        self.noise = noise(count, seed)

    def latents(self, patch: Patch, cfg: float, steps: int, sampler: str) -> tuple[Tensor, float]:
        """Final latents (N, 16, h, w) in the network's units, and the mean norm of the guidance."""
        import comfy.latent_formats
        import comfy.sample

        positive, negative = (
            [[context, {"pooled_output": pooled}]]
            for context, pooled in (conditioning.codes(self.labels), conditioning.codes(-torch.ones_like(self.labels)))
        )
        norms = Norms()
        samples = comfy.sample.sample(
            patch(norms.watch(self.model)),
            self.noise,
            steps,
            cfg,
            sampler,
            "simple",
            positive,
            negative,
            torch.zeros_like(self.noise),
            disable_pbar=True,
            seed=self.seed,
        )
        return comfy.latent_formats.SD3().process_in(samples.float()), norms.mean()

    def measures(self, patch: Patch, cfg: float, steps: int, sampler: str) -> dict[str, float]:
        latents, norm = self.latents(patch, cfg, steps, sampler)
        pictures = decode_unclipped(latents).clamp(-1, 1)
        return self.judge.measures(latents, self.labels) | {
            "contrast": float(pictures.flatten(1).std(1).mean()),
            "norm": norm,
        }


def load(comfyui: Path, precision: str) -> Any:
    """The MODEL that "Load Diffusion Model" makes of the demo's file, at this precision."""
    recognise.load_network(comfyui)  # puts ComfyUI on the path, told to use the CPU
    import comfy.sd

    return comfy.sd.load_diffusion_model(str(weights("flow")), model_options={"dtype": getattr(torch, precision)})
