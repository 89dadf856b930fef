"""SAMG's tables, and verdicts on what an earlier study on smaller models claimed."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from . import samg
from .metrics import Estimate, estimate
from .table import SPACES, TITLES, Part, difference, means, plus_minus, tabulate, worded
from .verdicts import QUESTION, finding, range_vote

POOLED = "accuracy, seeds pooled"
RULES = ("minmax", "quantile")
FLOOR = 1.5  # guidance from which the earlier study saw a gain with its flow model
SHARE = (1.43, 1.48)  # mean scale / w of the earlier study
RULE, SCALE = (("rule", lambda row: row.rpartition(", ")[0]), ("w", lambda row: row.rpartition(", ")[2]))


def tables(part: Part) -> dict[str, str]:
    spatial = rows_of(part, *samg.SAMG, *samg.CONTROLS)
    share = ("mean scale / w", lambda row: f"{part.mean(row, 'mean_scale').mean:.2f}" if row in spatial else "1")
    columns = means(part, "accuracy", "margin", *SPACES, "saturation", "spread")
    found = {"SAMG, nominal scales": tabulate([*rows_of(part, "CFG"), *spatial], RULE, SCALE, share, *columns)}
    for axis in (POOLED, "accuracy", "margin"):
        columns = [(TITLES[m], partial(_equal_cell, part, axis, m)) for m in (*SPACES, "saturation")]
        found[f"SAMG at equal {axis}"] = tabulate(spatial, RULE, SCALE, *columns)
    controls = [samg.name(control, scale) for scale in samg.CONTROLLED for control in samg.CONTROLS]
    columns = [(TITLES[m], partial(_control_cell, part, m)) for m in ("accuracy", "margin", *SPACES, "saturation")]
    found["SAMG against its controls"] = tabulate(controls, ("control", RULE[1]), SCALE, *columns)
    columns = [column for measure in SPACES for column in _best_columns(part, measure)]
    found["SAMG, best scales"] = tabulate(("CFG", *samg.SAMG), ("rule", str), *columns)
    return found


def _equal_cell(part: Part, axis: str, measure: str, row: str) -> str:
    return worded(at_equal_cfg(part, row, axis, measure), measure, part.seeds)


def _control_cell(part: Part, measure: str, row: str) -> str:
    change = part.change(samg.name("quantile", float(SCALE[1](row))), row, measure)
    judged = measure in (*SPACES, "saturation")  # of which less is better
    return worded(change, measure, part.seeds) if judged else difference(change, measure == "accuracy")


def _best_columns(part: Part, measure: str) -> Iterator:
    yield f"least {TITLES[measure]}", lambda rule: plus_minus(estimate(least(part, rule, measure)))
    change = partial(best_change, part, measure=measure)
    yield "against CFG's", lambda rule: "" if rule == "CFG" else worded(change(rule), measure, part.seeds)


def rows_of(part: Part, *variants: str, least: float = 0.0) -> list[str]:
    """Rows of these rules, in this order, by rising scale."""
    rows = []
    for variant in variants:
        scales = [float(SCALE[1](row)) for row in part.names if RULE[1](row) == variant]
        rows += [samg.name(variant, scale) for scale in sorted(scales) if scale >= least]
    return rows


def at_equal_cfg(part: Part, row: str, axis: str, measure: str) -> Estimate:
    """row minus the curve of plain guidance where that has row's own accuracy or margin."""
    scales = samg.ACCURACY_CURVE if axis == "accuracy" else samg.CFG
    curve = [samg.name("CFG", scale) for scale in scales]
    if axis == POOLED:
        return part.pooled_against_curve(row, curve, "accuracy", measure, log=measure in SPACES)
    return part.against_curve(row, curve, axis, measure, log=measure in SPACES)


def comparable(part: Part, rows: list[str], axis: str, measure: str) -> list[Estimate]:
    changes = [at_equal_cfg(part, row, axis, measure) for row in rows]
    return [value for value in changes if value.n == part.seeds]


def least(part: Part, variant: str, measure: str) -> list[float]:
    """The least of a rule's scales, seed by seed."""
    by_scale = [part.values(row, measure) for row in rows_of(part, variant)]
    return [min(values) for values in zip(*by_scale, strict=True)]


def best_change(part: Part, variant: str, measure: str) -> Estimate:
    pairs = zip(least(part, variant, measure), least(part, "CFG", measure), strict=True)
    return estimate([ours - theirs for ours, theirs in pairs])


def findings(part: Part) -> Iterator[tuple[str, str, str]]:
    rows = rows_of(part, *RULES, least=FLOOR)

    def at_equal(rows: list[str], axis: str) -> dict[str, list[Estimate]]:
        return {label: comparable(part, rows, axis, measure) for measure, label in SPACES.items()}

    def between(ours: str, theirs: str) -> dict[str, list[Estimate]]:
        """At each scale of the controls."""
        pairs = [(samg.name(ours, scale), samg.name(theirs, scale)) for scale in samg.CONTROLLED]
        return {label: [part.change(*pair, measure) for pair in pairs] for measure, label in SPACES.items()}

    for axis in (POOLED, "margin"):
        claim = f"SAMG from w = {FLOOR:g} up: lower FD than plain guidance at equal {axis}"
        yield finding(claim, at_equal(rows, axis))
    claim = "SAMG's weights at shuffled places do what plain guidance of the same mean does (difference at each w)"
    yield finding(claim, between("shuffled", "same mean"), "no difference")
    claim = "Swapped weights are much worse than plain guidance at equal margin"
    yield finding(claim, at_equal(rows_of(part, "swapped"), "margin"), "worse")
    claim = (
        "Not measured earlier: SAMG quantile against plain guidance with a step of the same length (no curve, no "
        f"interpolation; w = {', '.join(f'{scale:g}' for scale in samg.CONTROLLED)})"
    )
    yield finding(claim, between("quantile", "same norm"), words=QUESTION)
    saturation = comparable(part, rows, "margin", "saturation")
    claim = "SAMG does not lower the share of pixels out of range at equal margin"
    yield finding(claim, {"pixels": saturation}, "not better")
    shares = [part.mean(row, "mean_scale") for row in rows]
    extent = f"{min(share.mean for share in shares):.2f} to {max(share.mean for share in shares):.2f}"
    claim = f"SAMG's mean scale is {SHARE[0]} to {SHARE[1]} of the nominal one"
    yield finding(claim, {}, ranges={extent: [range_vote(share, *SHARE, neutral=1.0) for share in shares]})
    best = {label: [best_change(part, "quantile", measure)] for measure, label in SPACES.items()}
    yield finding("Best scale against best scale SAMG (quantile) gains little", best, "no difference")
