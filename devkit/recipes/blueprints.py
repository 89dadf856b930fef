"""Subgraph blueprints, which the frontend lists among the nodes: a KSampler with our nodes around it."""

from __future__ import annotations

from ..author import Node
from ..blueprint import Blueprint

SAMPLED = {"model": "MODEL", "positive": "CONDITIONING", "negative": "CONDITIONING", "latent": "LATENT"}
KSAMPLER = ("seed", "steps", "cfg", "sampler_name", "scheduler", "denoise")


def stabilised(object_info: dict) -> Blueprint:
    flow = Blueprint(
        "Stabilised KSampler (Gimbal)",
        object_info,
        SAMPLED,
        "A KSampler behind Stabilise. amount 0 is off, bit for bit.",
    )
    stable = flow.node("GimbalStabilise", model=flow.outside[0])
    sampler = _sampler(flow, stable)
    flow.grid([[stable], [sampler]])
    flow.widget("amount", stable, "amount")
    flow.output("latent", sampler[0])
    return flow


def corrected(object_info: dict) -> Blueprint:
    flow = Blueprint(
        "Corrected KSampler (Gimbal)",
        object_info,
        {"model": "MODEL", "stats": "QDRIFT_STATS", **dict(list(SAMPLED.items())[1:])},
        "A KSampler with Q-Drift for a quantized model. stats: from Q-Drift Load. strength 0 is off, bit for bit.",
    )
    drift = flow.node("GimbalQDrift", model=flow.outside[0], stats=flow.outside[1])
    sampler = _sampler(flow, drift, first=2)
    flow.grid([[drift], [sampler]])
    flow.widget("strength", drift, "strength")
    flow.output("latent", sampler[0])
    return flow


def _sampler(flow: Blueprint, model: Node, first: int = 1) -> Node:
    """A KSampler whose conditioning and latent come from the inputs number `first` on, and whose widgets all show."""
    positive, negative, latent = (flow.outside[i] for i in range(first, first + 3))
    conds = {"positive": positive, "negative": negative, "latent_image": latent}
    sampler = flow.node("KSampler", model=model[0], cfg=7.0, **conds)
    for name in KSAMPLER:
        flow.widget(name, sampler, name)
    return sampler


BLUEPRINTS = (stabilised, corrected)
