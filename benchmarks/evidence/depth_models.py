"""The two models whose depths are compared, as ComfyUI loads them, and their quantized forms."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from .formats import NumberFormat
from .model import conditioning, recognise
from .subjects import SIDE, noise, weights

import fitting  # isort: skip
import emoji_pictures  # isort: skip  (beside the letters, on the path once the model's module is imported)
import judge_pictures  # isort: skip
import words  # isort: skip
from gimbal_demo import latent  # isort: skip

SHIFT = 3.0  # of the schedule that both models were trained for
SAMPLES = 10
PICTURES, PACKAGES = judge_pictures.train_pictures.OUTPUT, judge_pictures.train_pictures.DATA


@dataclass(frozen=True, eq=False)
class Subject:
    """A model in float32, and how it is asked for things.

    Attributes:
        model: ComfyUI's MODEL. network: a copy of what is in it, as sampling leaves a model patched. shape: of its latents, without the batch.
        calibrated, asked: prompts of calibrations and of samples. Empty: nothing, as guidance needs.
        context: prompts to what `call` takes.
        blocks: the blocks of a network, in order.
    """

    name: str
    model: Any
    network: nn.Module
    shape: tuple[int, ...]
    calibrated: Sequence[str]
    asked: Sequence[str]
    context: Callable[[Sequence[str]], dict[str, Tensor]]
    blocks: Callable[[nn.Module], nn.ModuleList]
    file: Path

    @property
    def about(self) -> dict[str, int]:
        """What its rows say of it beside the file's digest."""
        with safe_open(self.file, "pt") as file:
            recipe = json.loads(file.metadata()["gimbal_demo"])
        return {"training_steps": recipe.get("steps_done", recipe["iterations"])}

    def empty(self, count: int) -> Tensor:
        return torch.zeros(count, *self.shape)

    def conditioning(self, prompts: Sequence[str]) -> tuple[list, list]:
        """ComfyUI's positive and negative, one entry each for the whole batch."""

        def conds(prompts: Sequence[str]) -> list:
            found = self.context(prompts)
            return [[found["context"], {"pooled_output": found["y"]} if "y" in found else {}]]

        return conds(prompts), conds([""] * len(prompts))


def letters(comfyui: Path) -> Subject:
    """3 blocks. All classes are sampled; calibrations see four of them."""
    model = _load(comfyui, weights("flow"))

    def context(prompts: Sequence[str]) -> dict[str, Tensor]:
        labels = torch.tensor([conditioning.CLASSES.index(each) if each else -1 for each in prompts])
        found, pooled = conditioning.codes(labels)
        return {"context": found, "y": pooled}

    classes = conditioning.CLASSES
    return Subject(
        "letters", model, deepcopy(model.model.diffusion_model), (latent.CHANNELS, SIDE, SIDE), classes[::3], classes, context,
        lambda network: network.joint_blocks, weights("flow"),
    )  # fmt: skip


def pictures(comfyui: Path, file: Path, data: Path) -> Subject:
    """9 blocks. Samples are of held-out prompts, calibrations of others that are held out too."""
    emoji_pictures.fetch(data)
    things = emoji_pictures.load(data)
    model = _load(comfyui, file)
    asked, _ = judge_pictures.held_out_prompts(things, SAMPLES)
    calibrated, _ = judge_pictures.held_out_prompts(things, 4, skip=SAMPLES)
    return Subject(
        "pictures", model, deepcopy(model.model.diffusion_model), (latent.CHANNELS, 1, SIDE, SIDE), calibrated, asked,
        lambda prompts: {"context": words.encode(prompts)}, lambda network: network.blocks, file,
    )  # fmt: skip


def quantized_model(subject: Subject, form: NumberFormat) -> Any:
    """The MODEL in this format: simulated by the pack's node, or loaded with rounded weights."""
    if form.name.startswith("W"):
        how = {"preset": form.name, "weight_bits": "by preset", "activation_bits": "by preset", "layers": "blocks"}
        node = "simulate_quantization.GimbalSimulateQuantization"
        return execute(node, subject.model, group_size=64, rank=0, **how)
    return _shifted(_loaded(form.quantize(subject.network).state_dict()))


def execute(node: str, *args: Any, **options: Any) -> Any:
    """The first output of a node of ours: a module and class of gimbal.nodes."""
    module, name = node.split(".")
    return getattr(import_module(f"gimbal.nodes.{module}"), name).execute(*args, **options)[0]


def ends(subject: Subject, model: Any, steps: int, cfg: float, seed: int) -> Tensor:
    """Final latents of the subject's prompts, in the network's units."""
    import comfy.sample

    positive, negative = subject.conditioning(subject.asked)
    empty = subject.empty(len(subject.asked))
    start = noise(len(subject.asked), seed).reshape(empty.shape)
    found = comfy.sample.sample(
        model, start, steps, cfg, "euler", "simple", positive, negative, empty, disable_pbar=True, seed=seed
    )
    return model.get_model_object("latent_format").process_in(found.float())


def velocity(network: nn.Module, x: Tensor, sigma: float, given: dict[str, Tensor]) -> Tensor:
    """Of one of a subject's networks. given: what the subject's `context` gives."""
    return network(x, torch.full((len(x),), sigma * 1000), **given)


def _load(comfyui: Path, file: Path) -> Any:
    recognise.load_network(comfyui)  # puts ComfyUI on the path, told to use the CPU
    return _shifted(_loaded(fitting.load_weights(file)))


def _loaded(state: dict[str, Tensor]) -> Any:
    import comfy.sd

    return comfy.sd.load_diffusion_model_state_dict(state, model_options={"dtype": torch.float32})


def _shifted(model: Any) -> Any:
    from comfy_extras.nodes_model_advanced import ModelSamplingSD3

    return ModelSamplingSD3().patch(model, SHIFT)[0]
