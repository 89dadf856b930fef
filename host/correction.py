"""A quantized model's correction, by Q-Drift or by moment matching, as a sampler function in the place of ComfyUI's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from comfy.k_diffusion import sampling
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ..calibration.correctors import CORRECTORS, DRIFT, Corrector
from ..calibration.layer_fields import described
from ..calibration.state_map import StateMap
from ..calibration.statistics import Channels, Kind, QDriftStatistics
from ..core.gain_formulas import PathName, Rule
from ..core.match import Map
from ..core.plan import Bias, Plan, Variance, make_plan
from .acting_plan import ActingPlan, Around, check_reachable, nested
from .messages import NOWHERE, Messages, NodeId
from .network_layers import ActingLayers
from .protocols import ModelSampling
from .sampling.stages import Window

REFUSE, FIRST_ORDER = "stop with an error", "correct each call"
ADVISED = "advised"
CORRECTION_CHOICES = (ADVISED, *CORRECTORS)
ANCESTRAL = (sampling.sample_euler_ancestral, sampling.sample_euler_ancestral_RF)


def solver_of(sampler: Any, options: Mapping[str, Any] = MappingProxyType({})) -> Any:
    """What `make_plan` is to take for ComfyUI's sampler function: it knows Euler's ancestral form by name alone."""
    return "euler_ancestral" if sampler in ANCESTRAL and "noise_sampler" not in options else sampler


@dataclass(frozen=True, eq=False)
class Correction:
    """What the two nodes have in common: statistics, how to use them, and the sampler function made of that.

    correction: one of CORRECTORS. `chosen` makes one from the nodes' inputs.
    """

    node: str
    stats: QDriftStatistics
    correction: str
    strength: float
    channels: Channels
    rule: Rule
    variance: Kind
    bias: str
    unsupported: str
    window: Window
    node_id: NodeId = NOWHERE
    weights: str = ""  # how the model's weights differ from the calibration's
    advice: str = ""  # what the statistics advised, for the node to say at every run

    @classmethod
    def chosen(
        cls, node: str, stats: QDriftStatistics, correction: str, strength: float, **options
    ) -> Correction | None:
        """None, and a message, where this is to change nothing.

        Raises:
            ValueError: the statistics lack what is asked for, or bias is set beside the layer correction.
        """
        messages, advice = Messages(node, options.get("node_id", NOWHERE)), ""
        if strength == 0.0:
            messages.add("changes nothing: strength is 0")
            return None
        if correction == ADVISED:
            correction, share, advice = cls._advised(stats)
            messages.info(advice)
            strength *= share if correction else 1.0
        if not correction and options["bias"] == "off":
            return None
        correction = correction or DRIFT  # whose gain the bias correction takes the place of
        made = cls(node, stats, correction, strength, advice=advice, **options)
        lacking = made._lacking()
        if lacking:
            raise ValueError(
                f"{node}: correction is {correction!r}, and {lacking}; calibrate with "
                "correction 'drift and moments', or set correction to 'drift'."
            )
        if made._kind.layers and made.bias != "off":
            raise ValueError(
                f"{node}: bias is {made.bias!r} beside correction {correction!r}; both take off the error's mean. Set bias "
                "to 'off'."
            )
        return made

    def _lacking(self) -> str:
        """What the statistics would have to hold; empty if they do."""
        if self._kind.layers and self.stats.layers is None:
            return "these statistics hold no layer correction for it"
        if self._kind.plan and self.stats.plan is None:
            return "these statistics hold no precision plan, which a calibration finds whose budget is above 0"
        return (
            "" if self._kind.maps is None or self._known_maps() is not None else "these statistics hold no maps for it"
        )

    @staticmethod
    def _advised(stats: QDriftStatistics) -> tuple[str, float, str]:
        """The correction, the share of the strength, and what to say of it."""
        if stats.trial is None:
            return DRIFT, 1.0, "these statistics hold no advice (no held-out runs, or merged); taking drift."
        advice = stats.trial.advice()
        if not advice.correction:
            words = (
                "changes nothing, as advised: on held-out runs no correction of this model helped clearly. "
                "Choose another correction to try one anyway."
            )
        else:
            words = f"advised is {advice.correction} at strength {advice.strength:g}."
        return advice.correction, advice.strength, words

    def plan(
        self,
        sampler: Any,
        sigmas: Tensor,
        path: PathName,
        model_sampling: ModelSampling,
        options: dict[str, Any] | None = None,
    ) -> Plan:
        """Of a sampler function, stock. ValueError if it has no corrected form."""
        return make_plan(
            solver_of(sampler, options or {}),
            sigmas,
            path=path,
            variance=self.variance_at(model_sampling) if self.drifts else self.drawn_at(model_sampling),
            strength=self.strength,
            rule=self.rule,
            options=options,
            model_sampling=model_sampling,
            bias=None if self.bias == "off" else self.bias_at(model_sampling),
            bias_mode="stochastic" if self.bias == "stochastic" else "deterministic",
        )

    def maps(self, plan: Plan, model_sampling: ModelSampling) -> list[Map | None]:
        """For each step what moment matching does after it; None where nothing."""
        known = self._known_maps()
        if known is None:
            return [None] * len(plan.steps)
        found: list[Map | None] = []
        for step in plan.steps:
            covered = self.window.covers(torch.tensor([step.sigma]), model_sampling)
            if not covered or not step.sigma > step.sigma_next:
                found.append(None)
                continue
            scale, shift = known.between(step.sigma, step.sigma_next, self.strength)
            idle = bool((scale == 1.0).all()) and not bool(shift.any())
            found.append(None if idle else (scale, shift))
        return found

    @property
    def maps_asked(self) -> bool:
        return self._kind.maps is not None

    def _known_maps(self) -> StateMap | None:
        beside = self._kind.maps
        return None if beside is None else self.stats.state_map(beside if self.bias == "off" else "")

    @property
    def _kind(self) -> Corrector:
        return CORRECTORS[self.correction]

    @property
    def drifts(self) -> bool:
        """Whether Q-Drift's gain acts. D2-DPM's bias correction takes its place: both answer to one error."""
        return self._kind.drift and self.bias == "off"

    @property
    def inside_alone(self) -> bool:
        """Whether nothing is done to the sampler's steps, so that any sampler will do."""
        return self._kind.maps is None and not self._kind.drift and self.bias == "off"

    def inside(self, model: ModelPatcher, messages: Messages | None = None) -> Around | None:
        """What is done in each call of a patcher's network, for `around_network`.

        Args:
            messages: told where the precision plan finds nothing to change.
        Raises:
            ValueError: the network cannot be corrected with these statistics.
        """
        plan = layers = None
        window, sampling = self.window, model.get_model_object("model_sampling")
        whole = (window.start_percent, window.end_percent) == (0.0, 1.0)
        high, low = (float(sampling.percent_to_sigma(each)) for each in (window.start_percent, window.end_percent))
        if self.stats.plan is not None:
            check_reachable(self.node, model)
            plan = ActingPlan(self.stats.plan.plan, messages)
            plan = plan if whole else plan.within(high, low)
        if self._kind.layers and self.stats.layers is not None:
            layers = ActingLayers(self.node, self.stats.layers, self.strength)
            layers.check(model)
            layers = layers if whole else layers.within(high, low)
        return nested(plan, layers)

    def inside_words(self) -> list[str]:
        """What `inside` does, a sentence each."""
        words = []
        if self.stats.plan is not None:
            words.append(f"precision plan: {self.stats.plan.describe()}.")
        if self._kind.layers and self.stats.layers is not None:
            words.append(f"{described(self.stats.layers)}, strength {self.strength:g}.")
        return words

    def drawn_at(self, model_sampling: ModelSampling) -> Variance | None:
        """Variance of the noise that a stochastic bias correction draws, of each channel; None where none is drawn."""
        if self.bias != "stochastic":
            return None

        def variance(sigma: float) -> Tensor:
            found = self.stats.variance(sigma, "channel")
            return found * self._share(sigma, model_sampling) ** 2

        return variance

    def _share(self, sigma: float, model_sampling: ModelSampling) -> float:
        return self.strength if self.window.covers(torch.tensor([sigma]), model_sampling) else 0.0

    def variance_at(self, model_sampling: ModelSampling) -> Variance:
        def variance(sigma: float) -> Tensor:
            found = self.stats.variance(sigma, self.channels, self.variance)
            return found if self.window.covers(torch.tensor([sigma]), model_sampling) else torch.zeros_like(found)

        return variance

    def bias_at(self, model_sampling: ModelSampling) -> Bias | None:
        def bias(sigma: float) -> tuple[Tensor, Tensor, Tensor]:
            """Slope, and the mean error where eps_hat is 0: E[delta | eps_hat] = slope eps_hat + intercept. Of each
            channel, whatever `channels` is: a mean pooled over channels is that of none."""
            share = self._share(sigma, model_sampling)
            slope = share * self.stats.slope(sigma, "channel")
            return slope, torch.zeros_like(slope), share * self.stats.intercept(sigma, "channel")

        return bias


def noise_sources(plan: Plan, x: Tensor, seed: int | None) -> dict[str, Any]:
    """For `run`: where an ancestral sampler's noise comes from, the stock one's, and that of a stochastic bias."""
    ancestral = any(step.renoise > 0.0 for step in plan.steps)
    return {
        "noise_sampler": sampling.default_noise_sampler(x, seed=seed) if ancestral else None,
        "generator": None if seed is None else torch.Generator().manual_seed(seed + 1),
    }
