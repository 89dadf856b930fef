"""A sampler function that runs by a correction's plan, in the place of one of ComfyUI's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import comfy.samplers
import torch
from torch import Tensor

from ..calibration.correctors import DRIFT
from ..core.match import Map, MomentMatcher
from ..core.plan import Plan
from ..core.solvers import run
from .calibration_match import check_model, log_mismatches
from .correction import FIRST_ORDER, REFUSE, Correction, noise_sources
from .messages import Messages
from .per_call import PerCallCorrector
from .protocols import SampledModel
from .sampling.hooks import around_network


def corrected(correction: Correction, sampler: comfy.samplers.Sampler) -> comfy.samplers.KSAMPLER:
    """`sampler` with a correction built in.

    Raises:
        ValueError: it is of a kind of its own, or corrected already.
    """
    if type(sampler) is not comfy.samplers.KSAMPLER:
        raise ValueError(
            f"{correction.node}: the sampler is a {type(sampler).__name__}, whose steps cannot be read; "
            "choose one of ComfyUI's samplers."
        )
    if isinstance(sampler.sampler_function, CorrectedSampler):
        raise ValueError(
            f"{correction.node}: this run's sampler is corrected already; use Quantization Fix or its sampler, not both."
        )
    function = CorrectedSampler(correction, sampler.sampler_function)
    return comfy.samplers.KSAMPLER(function, dict(sampler.extra_options), dict(sampler.inpaint_options))


class CorrectedSampler:
    """A sampler function, as ComfyUI's KSAMPLER calls it."""

    def __init__(self, correction: Correction, plain: Callable[..., Tensor]):
        self.correction, self.plain = correction, plain
        self.__name__ = getattr(plain, "__name__", "sampler")

    def __call__(
        self,
        model: SampledModel,
        x: Tensor,
        sigmas: Tensor,
        extra_args: dict | None = None,
        callback: Callable[..., None] | None = None,
        disable: bool | None = None,
        **options: Any,
    ) -> Tensor:
        extra_args, ours = extra_args or {}, self.correction
        if len(sigmas) < 2:
            return self.plain(model, x, sigmas, extra_args=extra_args, callback=callback, disable=disable, **options)
        guider = model.inner_model
        name = self.__name__.removeprefix("sample_").removesuffix("_function").removesuffix("_RF")
        path = check_model(ours.node, ours.stats.provenance, guider.model_patcher, x, packed=x.ndim == 3)
        messages = Messages(ours.node, ours.node_id)
        if ours.advice:
            messages.add(ours.advice)
        log_mismatches(ours.stats.provenance, guider, name, ours.weights, messages)
        model_sampling = guider.model_patcher.get_model_object("model_sampling")
        inside = ours.inside(guider.model_patcher, messages)
        if inside is not None:
            extra_args = around_network(extra_args, inside)
            for words in ours.inside_words():
                messages.info(words)
        if ours.inside_alone:
            return self.plain(model, x, sigmas, extra_args=extra_args, callback=callback, disable=disable, **options)
        try:
            plan = ours.plan(self.plain, sigmas, path, model_sampling, options)
        except ValueError as error:
            if ours.unsupported == REFUSE or ours.correction != DRIFT:
                remedy = f", or set 'unsupported' to {FIRST_ORDER!r}" if ours.correction == DRIFT else ""
                raise ValueError(
                    f"{ours.node}: {error} Choose another sampler (euler, dpmpp_2m, heun, ...){remedy}."
                ) from error
            per_call = PerCallCorrector(
                model, sigmas, path, ours.rule, ours.variance_at(model_sampling), ours.strength
            )
            messages.info(f"{name}, each call by itself, as if it were an Euler step.")
            if ours.bias != "off":
                messages.warning(
                    "left the bias correction out, which needs a sampler with a corrected form, and took Q-Drift's gain."
                )
            return self.plain(
                per_call,
                x,
                sigmas,
                extra_args=extra_args,
                callback=per_call.counting(callback),
                disable=disable,
                **options,
            )
        maps = ours.maps(plan, model_sampling)
        messages.info(f"{plan.describe()}{_described(maps)}.")
        if ours.maps_asked and not any(maps):
            messages.warning("no step of this run lies where the statistics have a map.")
        return self._run(plan, maps, model, x, extra_args, callback)

    def _run(
        self,
        plan: Plan,
        maps: list[Map | None],
        model: SampledModel,
        x: Tensor,
        extra_args: dict,
        callback: Callable[..., None] | None,
    ) -> Tensor:
        mask = extra_args.get("denoise_mask")
        return run(
            plan,
            lambda at, sigma: model(at, sigma, **extra_args),
            x,
            callback=callback,
            after_step=MomentMatcher(maps, mask) if any(maps) else None,
            mask=mask,
            **noise_sources(plan, x, extra_args.get("seed")),
        )


def _described(maps: list[Map | None]) -> str:
    acting = [each for each in maps if each is not None]
    if not acting:
        return ""
    scales = torch.stack([scale for scale, _ in acting])
    return f"; moment matching after {len(acting)} steps, scale {float(scales.min()):.4g} to {float(scales.max()):.4g}"
