"""What the pack needs of ComfyUI's objects that have no public type: their methods, as protocols."""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor


class ModelSampling(Protocol):
    """A model's noise schedule (comfy.model_sampling)."""

    def percent_to_sigma(self, percent: float) -> float: ...


class SampledModel(Protocol):
    """A model as a sampler function calls it (comfy.samplers.KSamplerX0Inpaint): denoised prediction at a noise level."""

    inner_model: Any  # the guider, of any kind
    sigmas: Tensor  # (steps + 1,), of the run

    def __call__(self, x: Tensor, sigma: Tensor, **options: Any) -> Tensor: ...


class Executor(Protocol):
    """What a wrapper calls on, with the arguments that it got (comfy.patcher_extension.WrapperExecutor)."""

    class_obj: Any

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor: ...
