"""Guidance and limits that are held against plain guidance of equal strength: what each does to a model.

Ours go through the pack's nodes, the peers through ComfyUI's own. Which rows are made of them: referee_parts.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from . import stabilise_search
from . import steering as s
from .thresholding import thresholded

PLAIN, STABILISE, TCFG = "plain CFG", "Stabilise", "TCFG"
STEPS = 10
Patch = Callable[[Any], Any]


@dataclass(frozen=True)
class Row:
    rule: str
    cfg: float
    steps: int = STEPS
    sampler: str = "euler"

    @property
    def name(self) -> str:
        return f"{self.rule}, {self.cfg:g}, {self.steps} {self.sampler}"


def node(module: str, name: str, **options: Any) -> Patch:
    """A node of ours: a class of gimbal.nodes.<module>."""

    def patched(model: Any) -> Any:
        from importlib import import_module

        return getattr(import_module(f"gimbal.nodes.{module}"), name).execute(model, **options)[0]

    return patched


def peer(module: str, name: str, **options: Any) -> Patch:
    """A node of ComfyUI's: a class of comfy_extras.<module>."""

    def patched(model: Any) -> Any:
        from importlib import import_module

        found = getattr(import_module(f"comfy_extras.{module}"), name)
        return found.execute(model, **options)[0] if hasattr(found, "execute") else found().patch(model, **options)[0]

    return patched


def tonemapped(model: Any, multiplier: float = 1.0) -> Any:
    from comfy_extras.nodes_latent import LatentApplyOperationCFG, LatentOperationTonemapReinhard

    return LatentApplyOperationCFG.execute(model, LatentOperationTonemapReinhard.execute(multiplier)[0])[0]


ALWAYS = {"start_percent": 0.0, "end_percent": 1.0, "strength": 1.0}
SAMG = {"w_min": -1.0, "w_max": -1.0, "curve": "linear", "scope": "clip", **ALWAYS}
PAPERS_SHARES = "paper's shares: 2/3 to 1.6 of cfg"  # of a mean of 1.5 cfg
MICROGRAIN = {"q_low": 0.001, "q_high": 0.999, "knee": 0.8, "alpha": 2.0, **ALWAYS}
DEFAULTS = {"along": 5.0, "across": 1.15, "fade": 1.0, "fine": 1.25}  # of Stabilise
FACTORS = {"amount": 1.0, **DEFAULTS, "models": "all models", "start_percent": 0.0, "end_percent": 1.0}
TILES = {
    "tile": 8,
    "stride": 4,
    "confidence": "gradient",
    **ALWAYS,
}  # as many as the node's own make of a large picture
AQCLIP = {"ema_beta": 0.8, **TILES}


def factors(along: float, across: float, fade: float, fine: float = 1.0) -> Patch:
    """Stabilise with these."""
    options = {"along": along, "across": across, "fade": fade, "fine": fine}
    return node("stabilise", "GimbalStabilise", **{**FACTORS, **options})


OURS = {
    "SAMG": node("samg", "GimbalSAMG", preset=PAPERS_SHARES, normalize="quantile", **SAMG),
    "SAMG paper": node("samg", "GimbalSAMG", preset=PAPERS_SHARES, normalize="minmax", **SAMG),
    "SAMG mean of cfg": node("samg", "GimbalSAMG", preset="w_min and w_max", normalize="quantile", **SAMG),
    "micrograin hard": node("micrograin", "GimbalMicrograin", form="hard", **MICROGRAIN),
    "micrograin smooth": node("micrograin", "GimbalMicrograin", form="smooth", **MICROGRAIN),
    "AQClip gentle": node("aqclip", "GimbalAQClip", corridor="gentle", **AQCLIP),
    "AQClip strong": node("aqclip", "GimbalAQClip", corridor="strong", **AQCLIP),
    "AQClip wide": node("aqclip", "GimbalAQClip", corridor="wide", ema_beta=0.0, **TILES),
    STABILISE: node("stabilise", "GimbalStabilise", **FACTORS),
}
PEERS = {
    "RescaleCFG": peer("nodes_model_advanced", "RescaleCFG", multiplier=0.7),
    "APG": peer("nodes_apg", "APG", eta=1.0, norm_threshold=5.0, momentum=0.0),
    "APG paper": peer("nodes_apg", "APG", eta=0.0, norm_threshold=15.0, momentum=-0.5),
    "CFG-Zero*": peer("nodes_cfg", "CFGZeroStar"),
    "CFGNorm": peer("nodes_cfg", "CFGNorm", strength=1.0),
    "TCFG": peer("nodes_tcfg", "TCFG"),
    "Mahiro": peer("nodes_mahiro", "Mahiro"),
    "FreSca": peer("nodes_fresca", "FreSca", scale_low=1.0, scale_high=1.25, freq_cutoff=4),
    "tonemapping": tonemapped,
    "dynamic thresholding": thresholded,
    "interval 0.2 to 0.8": s.interval(0.2, 0.8),
}
SHRUNK = partial(s.shrunk, share=1.0)
DECORRELATED = partial(s.orthogonal, keep=0.0, dims=s.SPACE, centre=True)


def composed(*extras: s.Extra) -> Patch:
    return s.extra(lambda g, cond: s.composed(g, cond, *extras))


CANDIDATES = {
    "micrograin 1 %, moments restored": s.limited(partial(s.same_moments, s.hard(0.01))),
    "AQClip strong, moments restored": s.limited(partial(s.same_moments, s.strong_tiles)),
    "micrograin 1 %, late": s.limited(s.hard(0.01), 0.6),
    "micrograin 1 %, moments, late": s.limited(partial(s.same_moments, s.hard(0.01)), 0.6),
    "guidance clamped 1 %": s.extra(partial(s.clamped, share=0.01)),
    "guidance compressed 2": s.extra(partial(s.compressed, knee=2.0)),
    "guidance compressed 1": s.extra(partial(s.compressed, knee=1.0)),
    "guidance shrunk 1": s.extra(SHRUNK),
    "guidance shrunk 2": s.extra(partial(s.shrunk, share=2.0)),
    "guidance shrunk 1, all channels at once": s.extra(partial(s.shrunk, share=1.0, dims=s.EVERYTHING)),
    "guidance shrunk 1, by place": s.extra(partial(s.shrunk_by_place, share=1.0)),
    "guidance shrunk 1, compressed 2": composed(SHRUNK, partial(s.compressed, knee=2.0)),
    "TCFG, guidance shrunk 1": s.chain(PEERS["TCFG"], s.extra(SHRUNK)),
    "guidance shrunk 1, tonemapping": s.chain(s.extra(SHRUNK), tonemapped),
    "SAMG mean 1": s.extra(partial(s.weighted, weights=s.samg_weights)),
    "swapped mean 1": s.extra(partial(s.weighted, weights=s.swapped_weights)),
    "energy^0.5": s.extra(partial(s.weighted, weights=partial(s.power_weights, power=0.5))),
    "energy^1": s.extra(partial(s.weighted, weights=partial(s.power_weights, power=1.0))),
    "energy^-0.25": s.extra(partial(s.weighted, weights=partial(s.power_weights, power=-0.25))),
    "no mean": s.extra(partial(s.without_mean, keep=0.0)),
    "low band": s.extra(partial(s.bands, low=1.0, high=0.5)),
    "high band": s.extra(partial(s.bands, low=0.5, high=1.0)),
    "orthogonal": s.extra(partial(s.orthogonal, keep=0.0)),
    "orthogonal by channel": s.extra(partial(s.orthogonal, keep=0.0, dims=s.SPACE)),
    "decorrelated": s.extra(DECORRELATED),
    "decorrelated by half": s.extra(partial(s.orthogonal, keep=0.5, dims=s.SPACE, centre=True)),
    "decorrelated, all channels at once": s.extra(partial(s.orthogonal, keep=0.0, centre=True)),
    "decorrelated, compressed 2": composed(partial(s.compressed, knee=2.0), DECORRELATED),
    "decorrelated, shrunk 1": composed(SHRUNK, DECORRELATED),
    "decorrelated, SAMG mean 1": composed(partial(s.weighted, weights=s.samg_weights), DECORRELATED),
    "decorrelated, no mean": composed(partial(s.without_mean, keep=0.0), DECORRELATED),
    "decorrelated, high band": composed(partial(s.bands, low=0.5, high=1.0), DECORRELATED),
    "decorrelated, early": s.extra(DECORRELATED, 0.0, 0.6),
    "decorrelated, late": s.extra(DECORRELATED, 0.3, 1.0),
    "orthogonal by place": s.extra(partial(s.orthogonal, keep=0.0, dims=(1,))),
    "channels^0.5": s.extra(partial(s.plane_weights, power=0.5)),
    "channels^-0.5": s.extra(partial(s.plane_weights, power=-0.5)),
    "moments of cond 0.5": s.guided(partial(s.restored, deviation=0.5, mean=0.0)),
    "moments of cond 0.5, mean": s.guided(partial(s.restored, deviation=0.5, mean=0.7)),
    "mean of cond": s.guided(partial(s.restored, deviation=0.0, mean=1.0)),
    "interval 0 to 0.5": s.interval(0.0, 0.5),
    "interval 0.3 to 1": s.interval(0.3, 1.0),
    "interval 0.1 to 0.6": s.interval(0.1, 0.6),
    "interval 0.1 to 1": s.interval(0.1, 1.0),
}

SEARCHED = (  # along, across and fade of Stabilise, in the first search
    *((1.0, 0.5, 0.0), (1.0, 0.33, 0.0), (1.0, 0.2, 0.0), (2.0, 0.5, 0.0), (3.0, 0.5, 0.0)),
    *((2.0, 0.7, 1.0), (3.0, 0.7, 1.0), (2.0, 0.8, 2.0), (2.0, 0.6, 0.5)),
)


def searched_name(along: float, across: float, fade: float) -> str:
    return f"along {along:g}, across {across:g}, fade {fade:g}"


def rules() -> dict[str, Patch]:
    searched = {searched_name(*each): factors(*each) for each in SEARCHED}
    return {PLAIN: lambda model: model} | OURS | PEERS | CANDIDATES | searched | stabilise_search.rules()
