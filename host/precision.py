"""A precision plan in a sampling run: in chosen steps, layers that round activations see them unrounded."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from torch import Tensor, nn

from ..core.places import is_linear, multiply_adds
from ..core.schedule import ChosenSteps
from .precision_switches import Switch, switches, unrounded
from .sampling.stages import NetworkStage, RunSchedule

NOTHING_ROUNDED = "This model rounds no activations here, and its weights' own error cannot be repaired so."


@dataclass(frozen=True, eq=False)
class PrecisionStage(NetworkStage):
    """The first and the last steps of a run.

    Attributes:
        layers: patterns of names as `fnmatch` takes them; none: all layers.
    """

    first: int
    last: int
    layers: tuple[str, ...] = ()

    def settings(self) -> str:
        where = f", layers {', '.join(self.layers)}" if self.layers else ""
        return f"first {self.first}, last {self.last} steps{where}"

    def chooses(self, layer: str) -> bool:
        return not self.layers or any(fnmatchcase(layer, pattern) for pattern in self.layers)

    def new_run(self, schedule: RunSchedule) -> PrecisionRun:
        return PrecisionRun(self, schedule)


class PrecisionRun:
    """What a `PrecisionStage` does in one run, and what it has done."""

    def __init__(self, stage: PrecisionStage, schedule: RunSchedule):
        self.stage, self.schedule = stage, schedule
        steps = max(len(schedule.sigmas) - 1, 0)
        first = 0 if schedule.continues else stage.first
        last = 0 if schedule.leaves_noise else stage.last
        self.chosen = [step < first or step >= steps - last for step in range(steps)]
        self._steps = ChosenSteps(schedule.sigmas, self.chosen)
        self._holds = False
        self._network: nn.Module | None = None
        self._switches: list[Switch] = []
        self._rounding: list[Switch] = []  # of the call at hand
        self._products: dict[str, int] = {}  # multiply-adds of each rounded layer in one call
        self._acted: set[str] = set()  # layers
        self._calls = self._changed = 0

    def before(self, begun: int, sigma: Callable[[], float]) -> None:
        self._holds = not self.schedule.compiled and self._steps.holds(begun, sigma)

    def look(self, network: nn.Module) -> None:
        if network is not self._network:  # its modules do not come and go within a run
            self._network, self._switches = network, switches(network)
        self._rounding = [each for each in self._switches if each.rounds()]

    @contextmanager
    def around(self, network: nn.Module) -> Iterator[bool]:
        wanted = [each for each in self._rounding if self.stage.chooses(each.name)] if self._holds else []
        self._calls += 1
        with ExitStack() as entered:
            if self._rounding and not self._products:
                entered.enter_context(counted(self._rounding, self._products))
            changes = bool(entered.enter_context(unrounded(wanted)))
            if changes:
                self._changed += 1
                self._acted.update(each.name for each in wanted)
            yield changes

    def report(self) -> str:
        if self._changed:
            steps = f"ran {sum(self.chosen)} of {len(self.chosen)} steps with unrounded activations"
            where = (
                f" in {len(self._acted)} of {len(self._products)} layers that round them" if self.stage.layers else ""
            )
            return f"{steps}{where}, {100 * self.share():.3g} % of these layers' multiply-adds in full precision."
        return f"did nothing. {self._reason()}"

    def share(self) -> float:
        """Of the rounded layers' multiply-adds in this run those that were made unrounded, if all calls are alike."""
        total = self._calls * sum(self._products.values())
        spent = self._changed * sum(self._products.get(name, 0) for name in self._acted)
        return spent / total if total else 0.0

    def _reason(self) -> str:
        if self.schedule.compiled:
            return "The model is compiled (torch.compile), whose layers cannot be reached; connect the model from before it."
        if not self._products:
            return NOTHING_ROUNDED
        if not any(self.chosen):
            if self.schedule.continues and self.stage.first:
                return "This run goes on from another one's noise, whose first steps are the first; it has none."
            return "This run leaves noise to another one, whose last steps are the last; it has none."
        if not any(self.stage.chooses(name) for name in self._products):
            names = ", ".join(list(self._products)[:3])
            return (
                f"No layer that rounds its activations matches {', '.join(self.stage.layers)}; there are {names}, ..."
            )
        return "The sampler made no call in the chosen steps."


@contextmanager
def counted(layers: Sequence[Switch], products: dict[str, int]) -> Iterator[None]:
    """While it is entered, products gets the multiply-adds of these layers, 0 for one that is not called or is not linear."""

    def count(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def add(module: nn.Module, _: Any, output: Any) -> None:
            if isinstance(output, Tensor) and is_linear(module):
                products[name] += multiply_adds(module, output)

        return add

    products.update({each.name: 0 for each in layers})
    with ExitStack() as hooks:
        for each in layers:
            hooks.callback(each.module.register_forward_hook(count(each.name)).remove)
        yield
