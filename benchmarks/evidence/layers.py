"""The layer correction found without a server: the pack's own places, means, loop and offsets over paired runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gimbal.core import places
from gimbal.core.layer_correction import LayerOffsets, Layout
from gimbal.core.layer_estimate import ClosedLoop, OutputMeans, even_groups, offsets
from gimbal.core.place_hooks import Act, acting, observing
from gimbal.core.places import Kind, Place
from gimbal.core.plan import Plan
from gimbal.core.run_means import RunMeans
from gimbal.core.solvers import run

from .calibrate import Denoise

GROUPS = 4  # of a schedule's steps, as `host.calibrating.layers` groups them
BRANCHES = (0, 1)  # of the guidance, as `model.cond_and_uncond` puts them one after another


@dataclass(frozen=True)
class Search:
    """Where offsets are looked for. kind: None for the pack's own choice. groups: None for a row for each step."""

    kind: Kind | None = None
    groups: int | None = GROUPS


@dataclass(frozen=True, eq=False)
class PairedRun:
    """One run's noise at the first noise level (1, C, h, w), and both models as its prompt makes them."""

    x: Tensor
    full: Denoise
    quantized: Denoise


def inside(network: nn.Module, wanted: Sequence[Place], act: Callable[[float], Act], denoise: Denoise) -> Denoise:
    """denoise with an action, by noise level, at places of its network. RuntimeError where a call misses a place."""

    def call(x: Tensor, sigma: Tensor) -> Tensor:
        with acting(network, wanted, act(float(sigma[0]))) as passed:
            output = denoise(x, sigma)
        if len(passed) < len(wanted):
            raise RuntimeError(f"a call passed {len(passed)} of {len(wanted)} places.")
        return output

    return call


def corrected(found: LayerOffsets, network: nn.Module, denoise: Denoise) -> Denoise:
    return inside(network, found.places, found.acting, denoise)


def find(plan: Plan, full: nn.Module, quantized: nn.Module, runs: Iterable[PairedRun], search: Search) -> LayerOffsets:
    """Closed loop, run after run (METHODS 4.5), rounded as a statistics file keeps it."""
    runs = list(runs)
    levels = [stage.sigma for step in plan.steps for stage in step.stages]
    groups = even_groups(len(levels), min(search.groups or len(levels), len(levels)))
    layout = Layout(_places(full, quantized, runs[0], levels[0], search.kind))
    found = RunMeans((groups[-1] + 1, layout.width))
    for each in runs:
        means = OutputMeans(layout, len(levels))
        run(plan, inside(full, layout.places, _by_level(means, levels), each.full), each.x)
        loop = ClosedLoop(layout, groups, means.values(), found)
        run(plan, inside(quantized, layout.places, _by_level(loop, levels), each.quantized), each.x)
        found = found.with_run(loop.difference())
    return offsets(layout, levels, groups, found).to("cpu", torch.bfloat16)


def _by_level(watcher: OutputMeans | ClosedLoop, levels: Sequence[float]) -> Callable[[float], Act]:
    def act(sigma: float) -> Act:
        return watcher.at(min(range(len(levels)), key=lambda level: abs(levels[level] - sigma)), BRANCHES)

    return act


def _places(
    full: nn.Module, quantized: nn.Module, first: PairedRun, sigma: float, kind: Kind | None
) -> tuple[Place, ...]:
    names = places.common_names(full, quantized, kind) if kind else places.find(full, quantized)[1]
    with observing(full, names) as seen:
        first.full(first.x, first.x.new_full((len(first.x),), sigma))
    return tuple(seen)
