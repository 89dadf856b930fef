"""The letters flow model as ComfyUI samples it: its loader, its samplers, its nodes around the model."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .judge import Judge
from .model import conditioning, decode_unclipped, recognise
from .subjects import noise, weights

KEY = "gimbal.referee"
SCHEDULERS = {"flow": "simple", "w4a4": "simple", "eps": "karras"}  # of each model
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

    def __init__(self, model: Any, count: int, seed: int, judge: Judge, kind: str = "flow") -> None:
        self.model, self.seed, self.judge, self.scheduler = model, seed, judge, SCHEDULERS[kind]
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
            self.scheduler,
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


def load(comfyui: Path, precision: str, kind: str = "flow") -> Any:
    """The MODEL that "Load Diffusion Model" makes of the demo's file, at this precision.

    kind: of SCHEDULERS. w4a4: with simulated quantization of weights and activations to 4 bits. eps: the model that predicts eps.
    """
    recognise.load_network(comfyui)  # puts ComfyUI on the path, told to use the CPU
    import comfy.sd

    path = weights("eps" if kind == "eps" else "flow")
    model = comfy.sd.load_diffusion_model(str(path), model_options={"dtype": getattr(torch, precision)})
    if kind == "eps":
        from comfy_extras.nodes_model_advanced import ModelSamplingDiscrete

        return ModelSamplingDiscrete().patch(model, "eps", False)[0]
    return _rounded(model) if kind == "w4a4" else model


def _rounded(model: Any) -> Any:
    node = import_module("gimbal.nodes.simulate_quantization")  # ComfyUI is on the path once the model is loaded
    bits = {"weight_bits": node.BY_PRESET, "activation_bits": node.BY_PRESET}
    options = {"preset": "W4A4", "group_size": 64, "rank": 0, "layers": node.BLOCKS, **bits}
    return node.GimbalSimulateQuantization.execute(model, **options)[0]
