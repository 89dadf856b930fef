"""What the pack needs of ComfyUI's objects that have no public type: their methods, as protocols."""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor


class ModelSampling(Protocol):
    """A model's noise schedule (comfy.model_sampling)."""

    def percent_to_sigma(self, percent: float) -> float: ...


class Executor(Protocol):
    """What a wrapper calls on, with the arguments that it got (comfy.patcher_extension.WrapperExecutor)."""

    class_obj: Any

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor: ...
