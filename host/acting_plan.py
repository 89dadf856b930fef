"""A calibrated precision plan in a sampling run: at its noise levels its layers see unrounded activations."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

from comfy.model_patcher import ModelPatcher
from torch import Tensor, nn

from ..core.precision_plan import PrecisionPlan
from .messages import Messages
from .model_kind import compiled
from .precision_switches import Switch, switches, unrounded
from .sampling.hooks import NetworkCall

Around = Callable[[NetworkCall], Tensor]


class ActingPlan:
    """What `around_network` takes. Each call waits for its noise level's value; no switch stays turned after it.

    Args:
        messages: told once, where a call of the plan finds nothing to change; None: not told.
    """

    def __init__(self, plan: PrecisionPlan, messages: Messages | None = None):
        self.plan, self._messages = plan, messages
        self._high, self._low = math.inf, 0.0
        self._network: nn.Module | None = None
        self._switches: dict[str, Switch] = {}
        self._told = False

    def within(self, high: float, low: float) -> ActingPlan:
        """The same from one noise level to another."""
        other = ActingPlan(self.plan, self._messages)
        other._high, other._low = min(self._high, high), max(self._low, low)
        return other

    def __call__(self, call: NetworkCall) -> Tensor:
        if call.network is not self._network:
            self._network, self._switches = call.network, {each.name: each for each in switches(call.network)}
        sigma = float(call.sigma.flatten()[0])
        inside = self._high >= sigma >= self._low
        chosen = self.plan.unrounded(sigma, self._switches) if inside else frozenset()
        with unrounded([self._switches[name] for name in self._switches if name in chosen]) as changed:
            if inside and not changed and self.plan.acts_at(sigma):
                self._tell()
            return call.output()

    def _tell(self) -> None:
        if self._messages is not None and not self._told:
            self._messages.warning(
                "the precision plan found nothing to change: no layer that it names rounds its activations here (another "
                "format, a LoRA that is applied on the way, or a device that emulates the format)."
            )
        self._told = True


def check_reachable(node: str, model: ModelPatcher) -> None:
    """ValueError if the model's layers cannot be switched."""
    if compiled(model):
        raise ValueError(
            f"{node}: the model is compiled (torch.compile), whose layers cannot be reached, and these statistics hold a "
            "precision plan; connect the model from before that node."
        )


def nested(outer: Around | None, inner: Around | None) -> Around | None:
    """Both around one call, where there are both."""
    if outer is None or inner is None:
        return outer or inner
    return lambda call: outer(replace(call, output=lambda: inner(call)))
