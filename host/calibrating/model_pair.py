"""Two models that are compared call by call: what they must have in common, and what neither may carry."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import comfy.model_sampling
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP

from ...core.gain_formulas import PathName
from .. import identity
from ..model_kind import compiled, hook_names, latent_format, path_of
from ..sampling.hooks import SAMPLER_KEY, stages_of
from .sampling_runs import Schedule

# Core's kinds of prediction, those that derive from others first.
KINDS = ("EDM", "V_PREDICTION", "COSMOS_RFLOW", "CONST", "EPS")
CACHES = ("easycache", "lazycache", "teacache", "tea_cache", "magcache", "fbcache", "first_block_cache", "wavespeed")
CACHE_OPTIONS = {"rel_l1_thresh", "magcache_thresh"}  # how TeaCache and MagCache mark a model


@dataclass(frozen=True)
class Traits:
    """What has to agree between full precision and quantized."""

    path: PathName
    kind: str
    channels: int
    latent_format: str
    sigma_min: float
    sigma_max: float

    @classmethod
    def of(cls, node: str, name: str, model: ModelPatcher) -> Traits:
        """ValueError if this kind of model cannot be calibrated."""
        path = path_of(f"{node}: {name}", model)
        sampling, latent = model.get_model_object("model_sampling"), model.get_model_object("latent_format")
        kind = next(kind for kind in KINDS if _is(sampling, kind))
        sigmas = float(sampling.sigma_min), float(sampling.sigma_max)
        return cls(path, kind, int(latent.latent_channels), latent_format(model), *sigmas)

    def check_same(self, node: str, full: str, other: Traits, quantized: str) -> None:
        """ValueError if `other`, of the input `quantized`, is no twin of this, of the input `full`."""
        pair = f"{node}: {full} and {quantized}"
        for one, two, what, remedy in (
            (self.channels, other.channels, "latent channels", "connect the same model twice, once quantized"),
            (self.latent_format, other.latent_format, "latent format", "connect the same model twice, once quantized"),
            (self.kind, other.kind, "prediction type", "put the same sampling nodes behind both, or none"),
        ):
            if one != two:
                raise ValueError(f"{pair} differ in {what} ({one} and {two}); {remedy}.")
        ours, theirs = (self.sigma_min, self.sigma_max), (other.sigma_min, other.sigma_max)
        if not all(math.isclose(a, b, rel_tol=1e-4) for a, b in zip(ours, theirs, strict=True)):
            ranges = " and ".join(f"{low:.4g} to {high:.4g}" for low, high in (ours, theirs))
            raise ValueError(
                f"{pair} differ in their range of sigma ({ranges}); set the same shift on both, with the same nodes."
            )

    def settings(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, eq=False)
class ModelPair:
    """What is compared.

    Attributes:
        full: None where its trajectories are recorded already.
        full_key: of all that the trajectories depend on but seed and prompt. quantized_key: of the quantized model.
    """

    traits: Traits
    full: ModelPatcher | None
    quantized: ModelPatcher
    full_key: str
    quantized_key: str


def full_key(traits: Traits, model: str, schedule: Schedule) -> str:
    """Of all that full precision's trajectories depend on but seed and prompt. model: its identity."""
    return identity.digest(
        model,
        traits.settings(),
        (schedule.latent, schedule.batch_index, schedule.cfg, schedule.sampler, schedule.sigmas),
        identity.environment(),
    )


def _is(sampling: object, kind: str) -> bool:
    known = getattr(comfy.model_sampling, kind, None)
    return known is not None and isinstance(sampling, known)


def check_plain(node: str, name: str, model: ModelPatcher) -> None:
    """ValueError if the model carries what would be measured in place of its quantization."""
    words = {word.lower() for word in hook_names(model)}
    cache = next((known for known in CACHES if any(known in word for word in words)), None)
    if cache or words & CACHE_OPTIONS:
        raise ValueError(
            f"{node}: {name} carries a step cache ({cache or 'TeaCache or its like'}), which reuses earlier predictions "
            "in place of asking the network; connect the model from before that node."
        )
    if compiled(model):
        raise ValueError(
            f"{node}: {name} is compiled (torch.compile), which rounds differently from call to call and machine to "
            "machine; connect the model from before that node. The statistics serve the compiled model as well."
        )
    acting = [stage.node for stage in stages_of(model) if not stage.observes_only]
    if model.get_wrappers(WrappersMP.OUTER_SAMPLE, SAMPLER_KEY):
        acting.append("Quantization Fix (Q-Drift)")
    if acting:
        raise ValueError(
            f"{node}: {name} carries {', '.join(acting)}; the statistics would describe what that makes of the "
            "prediction. Connect the model from before it, and put it behind the correction instead."
        )


def checked(node: str, name: str, model: ModelPatcher) -> Traits:
    """The traits of a model that can be calibrated. ValueError if it is none."""
    check_plain(node, name, model)
    return Traits.of(node, name, model)
