"""Full precision's means at its places, gathered while its runs are sampled."""

from __future__ import annotations

import logging

from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ...calibration.place_means import PlaceMeans
from ...core import places
from ...core.layer_correction import Layout
from ...core.layer_estimate import OutputMeans
from ...core.place_hooks import acting, observing
from ...core.places import Place
from ..sampling.hooks import NetworkCall

logger = logging.getLogger(__name__)
BRANCHES = 2  # cond and uncond
LEVEL_TOLERANCE = 1e-6  # a schedule computed on two devices may differ in float32's last bits


class PlaceWatch:
    """What `around_network` takes to gather one full-precision run's means after another.

    The first call of the first run finds the places, and is made three times for that.

    Args:
        sigmas: (steps + 1,), the schedule.
    """

    def __init__(self, node: str, sigmas: Tensor):
        self.node, self.sigmas = node, sigmas
        self._found: tuple[tuple[Place, ...], tuple[Place, ...]] | None = None
        self._layout: Layout | None = None
        self._means: OutputMeans | None = None

    def start(self) -> None:
        """A run begins."""
        self._means = None

    def __call__(self, call: NetworkCall) -> Tensor:
        if self._found is None:
            self._found = self._places(call)
            held = (*self._found[0], *self._found[1])
            self._layout = Layout(held) if held else None
        if self._layout is None:
            return call.output()
        if self._means is None:
            self._means = OutputMeans(self._layout, len(self.sigmas) - 1, BRANCHES, call.sigma.device)
        level = level_of(self.sigmas, float(call.sigma.flatten()[0]))
        with acting(call.network, self._layout.places, self._means.at(level, call.branches)):
            return call.output()

    def taken(self) -> PlaceMeans:
        """Of the run that has ended. Empty, and a line in the log, where its calls did not all pass the same places."""
        if self._found is None or self._means is None:
            return PlaceMeans.none()
        try:
            return PlaceMeans(*self._found, self._means.values().cpu())
        except ValueError as error:
            logger.warning("%s: no layer correction can come of this run: %s", self.node, error)
            return PlaceMeans.none()

    def _places(self, call: NetworkCall) -> tuple[tuple[Place, ...], tuple[Place, ...]]:
        """Residual ones and blocks that one call passes, with a batch that divides into the guidance's branches."""
        network, chunks = call.network, len(call.branches)
        by_kind: tuple[places.Kind, ...] = ("residual", "block")
        with (
            observing(network, places.names(network, by_kind[0])) as residual,
            observing(network, places.names(network, by_kind[1])) as block,
        ):
            call.output()
        usable: set[Place] = set()

        def note_usable(place: Place, y: Tensor) -> Tensor:
            if len(y) % chunks == 0:
                usable.add(place)
            return y

        with acting(network, [*residual, *block], note_usable):
            call.output()
        return tuple(p for p in residual if p in usable), tuple(p for p in block if p in usable)


def place_widths(model: ModelPatcher) -> int:
    """About how many channels the places of a model have together: blocks give what their residual layers do."""
    network = model.model.diffusion_model
    residual = places.names(network, "residual")
    return 2 * sum(int(network.get_submodule(name).out_features) for name in residual)


def level_of(sigmas: Tensor, sigma: float) -> int:
    """The step that a call at this noise level belongs to: the last one that begins at it or above.

    Args:
        sigmas: (steps + 1,), falling.
    """
    begun = int((sigmas[:-1].double() * (1.0 + LEVEL_TOLERANCE) >= sigma).sum())
    return max(begun - 1, 0)
