"""Q-Drift's gain at each model call by itself, for samplers whose steps are not known."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..core.qdrift import cap_gain, euler_gain, quadrature_gain
from ..core.schedule import StepCounter
from .protocols import SampledModel


class PerCallCorrector:
    """A model whose noise prediction is lengthened at each call as an Euler step from there would lengthen it.

    On flow the noise is that of y = x / (1 - sigma), as in the marginal rule; by the paper's rule it is the velocity.

    Args:
        model: what ComfyUI's KSAMPLER hands to a sampler, whose mask it keeps to.
        sigmas: (steps + 1,), the schedule.
        path, rule: as in core.plan.make_plan.
        variance: sigma -> V, (C,).
        strength: multiplies the gain.
    """

    def __init__(
        self,
        model: SampledModel,
        sigmas: Tensor,
        path: str,
        rule: str,
        variance: Callable[[float], Tensor],
        strength: float,
    ):
        self._model, self._flow, self._rule = model, path == "flow", rule
        self._levels, self._variance, self._strength = sigmas.tolist(), variance, strength
        self._counter, self._begun = StepCounter(self._levels), 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def counting(self, callback: Callable[..., None] | None) -> Callable[..., None]:
        """The callback for the sampler: by it the calls know their step."""

        def counted(info: dict[str, Any]) -> None:
            self._begun += 1
            if callback is not None:
                callback(info)

        return counted

    def __call__(self, x: Tensor, sigma: Tensor, **options: Any) -> Tensor:
        denoised = self._model(x, sigma, **options)
        level = float(sigma.flatten()[0])
        step = self._counter.step(level, self._begun)
        following = self._levels[min(step + 1, len(self._levels) - 1)]
        alpha = 1.0 - level if self._scaled else 1.0
        if alpha <= 0.0 or not level > following:  # flow at sigma 1, and steps up or of no length
            return denoised
        gain, _ = cap_gain(self._strength * self.gain(level, following), 1.0)
        gain = gain.to(denoised).view(1, -1, *[1] * (x.ndim - 2))
        corrected = denoised * (1.0 + gain) - x * (gain / alpha)
        mask = self._mask(sigma, options)
        return corrected if mask is None else torch.lerp(denoised, corrected, mask.to(denoised).expand_as(denoised))

    def gain(self, sigma: float, sigma_next: float) -> Tensor:
        """c, (C,), of an Euler step down, at strength 1, as make_plan's rules have it: Eq. 22 on ve by auto and paper,
        Eq. 27 on flow by paper, Eq. 37 in y else."""
        variance = self._variance(sigma)
        if self._rule == "paper" or (self._rule == "auto" and not self._flow):
            return euler_gain(sigma, sigma_next, variance)
        alphas = [1.0 - level if self._flow else 1.0 for level in (sigma, sigma_next)]
        bar, bar_next = (
            level / alpha if alpha > 0.0 else math.inf
            for level, alpha in zip((sigma, sigma_next), alphas, strict=True)
        )
        # On flow V_eps = alpha^2 V_v.
        return quadrature_gain([bar_next - bar], (alphas[0] ** 2 * variance)[None], bar, bar_next)

    @property
    def _scaled(self) -> bool:
        return self._flow and self._rule != "paper"

    def _mask(self, sigma: Tensor, options: dict[str, Any]) -> Tensor | None:
        """Where the model predicts, 1, and where the given latent is kept, 0, as KSamplerX0Inpaint has it."""
        mask = options.get("denoise_mask")
        change = options.get("model_options", {}).get("denoise_mask_function")
        if mask is None or change is None:
            return mask
        about = {"model": self._model.inner_model, "sigmas": self._model.sigmas}
        return change(sigma, mask, extra_options=about)
