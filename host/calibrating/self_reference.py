"""A quantized model as its own reference: the same file with all activations unrounded."""

from __future__ import annotations

from comfy.model_patcher import ModelPatcher

from ..precision import PrecisionStage
from ..precision_switches import MixedSwitch, switches
from ..sampling.hooks import add_stage
from ..sampling.stages import Window
from ..simulating.fake_linear import carried_quantization

EVERY = 10**6  # steps, more than a schedule has
REFERENCE = "this file with unrounded activations; the weights' own error is not seen"


def self_reference(node: str, name: str, model: ModelPatcher) -> ModelPatcher:
    """A clone of a quantized model that rounds no activations, in any step.

    Args:
        name: of the input that the model comes from.
    Raises:
        ValueError: it rounds none to begin with.
    """
    if not rounds_activations(model):
        raise ValueError(
            f"{node}: {name} rounds no activations here, so that it cannot be its own reference (GGUF and other formats "
            "that round weights alone, or a device that emulates the format); connect the model in full precision to "
            "full_model."
        )
    return add_stage(model, PrecisionStage(node, Window(), EVERY, 0))


def rounds_activations(model: ModelPatcher) -> bool:
    """Whether layers of a model round their activations and can be run without that."""
    simulated = carried_quantization(model)
    # A simulated layer is put on the network when it is loaded; on it now may be another clone's.
    rounds = any(each.rounds() for each in switches(model.model.diffusion_model) if isinstance(each, MixedSwitch))
    return rounds or (simulated is not None and simulated.activation_bits is not None)
