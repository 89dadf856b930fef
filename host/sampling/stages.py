"""What a node does in a sampling run, as a *stage*: its options and how it changes a prediction.

A `DenoisedStage` changes the final prediction of x0 at every model call, after guidance. A `GuidanceStage` changes the
conditional prediction before CFG. A `NetworkStage` changes how the network computes a call. A stage holds configuration only, so ComfyUI may cache the model that carries it
between prompts and share it between branches. The one thing a run leaves behind is what its stages saw, for the preview
nodes to show (see observe); no run reads it.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

from torch import Tensor, nn

from ..messages import NOWHERE, NodeId
from ..protocols import ModelSampling
from .observe import Observer


@dataclass(frozen=True)
class Window:
    """The part of the schedule a stage acts in, as fractions of the whole noise schedule: 0 is pure noise, 1 the end."""

    start_percent: float = 0.0
    end_percent: float = 1.0

    def check(self, node: str) -> None:
        if not 0.0 <= self.start_percent <= self.end_percent <= 1.0:
            raise ValueError(
                f"{node}: start_percent ({self.start_percent}) must not be above end_percent ({self.end_percent}), "
                "both between 0 and 1; lower start_percent or raise end_percent."
            )

    def covers(self, sigma: Tensor, model_sampling: ModelSampling) -> bool:
        if self.start_percent == 0.0 and self.end_percent == 1.0:
            return True  # without asking for sigma's value, which would wait for the device
        start = model_sampling.percent_to_sigma(self.start_percent)
        end = model_sampling.percent_to_sigma(self.end_percent)
        return end <= float(sigma.flatten()[0]) <= start


@dataclass(frozen=True, eq=False)
class Stage:
    """What one node does, with its options. Nothing in it changes."""

    node: str  # display name, for messages
    window: Window
    observer: Observer = field(default_factory=Observer, kw_only=True)
    node_id: NodeId = field(default=NOWHERE, kw_only=True)  # for messages on the node
    observes_only: ClassVar[bool] = False  # it changes no prediction, so that a model with it may be calibrated

    def settings(self) -> str:
        """The options in a few words, for the one log line of a run."""
        raise NotImplementedError


@dataclass(frozen=True)
class CallContext:
    """What a stage may want to know of one model call."""

    step: int | None  # None if the stage does not ask for it
    attention: (
        Tensor | None
    )  # the network's confidence on its token grid, (B, h, w) or (B, F, h, w), where asked for and read
    record_maps: Callable[..., None]  # show maps (B, *spatial) by name to the preview nodes


@dataclass(frozen=True)
class GuidanceContext:
    """What a guidance stage may want to know of one model call."""

    noisy: Tensor  # the sampler's state that both predictions were made from, in their shape and units
    cfg: float  # scale of the CFG that follows
    record_maps: Callable[..., None]  # as CallContext's


@dataclass(frozen=True, eq=False)
class DenoisedStage(Stage):
    @property
    def reads_attention(self) -> bool:
        """Whether the network's attention is to be read for it."""
        return False

    @property
    def reads_step(self) -> bool:
        """Whether it wants to know which step of the schedule a call belongs to."""
        return False

    def new_state(self) -> Any:
        """What a run has to remember between steps, made anew for each run. None: nothing."""
        return None

    def unsupported_reason(self, denoised: Tensor) -> str:
        """Why this stage cannot act on such a latent; empty if it can."""
        return ""

    def apply(self, denoised: Tensor, state: Any, call: CallContext) -> Tensor:
        """denoised (B, C, *spatial) to the same shape, without changing it."""
        raise NotImplementedError


@dataclass(frozen=True, eq=False)
class GuidanceStage(Stage):
    def settings_at(self, cfg: float) -> str:
        """`settings`, with what follows from the sampler's cfg."""
        return self.settings()

    def unsupported_reason(self, cond: Tensor, cfg: float) -> str:
        """Why this stage cannot act on such a prediction; empty if it can."""
        return ""

    def apply(self, cond: Tensor, uncond: Tensor, call: GuidanceContext) -> Tensor:
        """The conditional prediction that plain CFG is to see instead of cond."""
        raise NotImplementedError


@dataclass(frozen=True)
class RunSchedule:
    """What a stage may want to know of a run before it starts.

    Attributes:
        sigmas: (steps + 1,) noise levels.
        continues: it goes on from the noise of another run, as KSamplerAdvanced without add_noise does.
        leaves_noise: its last level is above the model's least, so that another run is to go on from there.
        compiled: torch.compile stands between the network's modules and a call.
    """

    sigmas: tuple[float, ...]
    continues: bool = False
    leaves_noise: bool = False
    compiled: bool = False


class NetworkRun(Protocol):
    """What a `NetworkStage` does in one run."""

    def before(self, begun: int, sigma: Callable[[], float]) -> None:
        """A call of the model comes. begun: callbacks made before it. sigma: its noise level; waits for the device."""

    def look(self, network: nn.Module) -> None:
        """A call of the network comes, before any stage has changed anything in it."""

    def around(self, network: nn.Module) -> AbstractContextManager[bool]:
        """In which that call is made; gives whether it changes anything."""

    def report(self) -> str:
        """What it did, in a line."""


@dataclass(frozen=True, eq=False)
class NetworkStage(Stage):
    def new_run(self, schedule: RunSchedule) -> NetworkRun:
        """What it does in a run, made anew for each."""
        raise NotImplementedError
