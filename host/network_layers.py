"""The layer correction in a sampling run: the statistics' offsets at the places of the network that is called."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor, nn

from ..core.layer_correction import LayerOffsets
from ..core.place_hooks import acting
from ..core.places import Place
from .model_kind import compiled
from .sampling.hooks import NetworkCall


class ActingLayers:
    """What `around_network` takes: offsets on at the calibrated places, for one call of the network at a time.

    Nothing in a call waits for the device, and no hook outlives it.

    Args:
        layers: the offsets. strength: what they are multiplied by.
    """

    def __init__(self, node: str, layers: LayerOffsets, strength: float):
        self.node, self.layers, self.strength = node, layers, strength
        self._on: dict[torch.device, LayerOffsets] = {}
        self._met = False

    def within(self, high: float, low: float) -> ActingLayers:
        """The same from one noise level to another."""
        return ActingLayers(self.node, self.layers.within(high, low), self.strength)

    def check(self, model: ModelPatcher) -> None:
        """ValueError if the model, a patcher, cannot be corrected with these offsets."""
        if compiled(model):
            raise ValueError(
                f"{self.node}: the model is compiled (torch.compile), whose layers cannot be reached; connect the model from "
                "before that node, or choose another correction."
            )
        fault = place_fault(model.model.diffusion_model, self.layers.places)
        if fault:
            raise ValueError(
                f"{self.node}: the statistics correct layers inside another network: here {fault}. Load the statistics of "
                "this model, calibrate it, or choose another correction."
            )

    def __call__(self, call: NetworkCall) -> Tensor:
        device = call.sigma.device
        if device not in self._on:
            self._on[device] = self.layers.to(device)
        layers = self._on[device]
        with acting(call.network, layers.places, layers.acting(call.sigma, self.strength)) as passed:
            output = call.output()
        if not self._met and len(passed) < len(layers.places):
            first = next(place for place in layers.places if place not in passed)
            raise ValueError(
                f"{self.node}: {len(layers.places) - len(passed)} of {len(layers.places)} calibrated layers gave nothing that "
                f"fits, first {first.name} ({first.channels} channels); the network computes in another way than when it "
                "was calibrated. Calibrate it as it is now, or choose another correction."
            )
        self._met = True  # later calls may leave blocks out, as skip-layer guidance does
        return output


def place_fault(network: nn.Module, places: Sequence[Place]) -> str | None:
    """What the network lacks of these places by name and number of outputs, or None."""
    for place in places:
        try:
            module = network.get_submodule(place.name)
        except AttributeError:
            return f"there is no {place.name}"
        features = getattr(module, "out_features", place.channels)
        if features != place.channels:
            return f"{place.name} gives {features} channels and not {place.channels}"
    return None
