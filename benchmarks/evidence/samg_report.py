"""SAMG's tables, and what they say of earlier claims."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import chain

from . import samg
from .metrics import Estimate, estimate
from .table import SPACES, TITLES, Part, brief, by_space, difference, means, plus_minus, tabulate, tally, worded
from .verdicts import QUESTION, range_vote, verdict, votes

POOLED = "accuracy, seeds pooled"
AXES = {"pooled": POOLED, "accuracy": "accuracy", "margin": "margin"}
RULES = ("minmax", "quantile")
FLOOR = 1.5  # guidance from which the earlier study saw a gain with its flow model
SHARE = (1.43, 1.48)  # mean scale / w of the earlier study
RULE, SCALE = (("rule", lambda row: row.rpartition(", ")[0]), ("w", lambda row: row.rpartition(", ")[2]))


def tables(part: Part) -> dict[str, str]:
    spatial = rows_of(part, *samg.SAMG, *samg.CONTROLS)
    share = ("mean scale / w", lambda row: f"{part.mean(row, 'mean_scale').mean:.2f}" if row in spatial else "1")
    shown = means(part, "accuracy", "margin", *SPACES, "saturation", "spread")
    found = {"samg nominal": tabulate([*rows_of(part, "CFG"), *spatial], RULE, SCALE, share, *shown)}
    for name, axis in AXES.items():
        columns = [(TITLES[m], partial(_equal_cell, part, axis, m)) for m in (*SPACES, "saturation")]
        found[f"samg equal {name}"] = tabulate(spatial, RULE, SCALE, *columns)
    controls = [samg.name(control, scale) for scale in samg.CONTROLLED for control in samg.CONTROLS]
    columns = [(TITLES[m], partial(_control_cell, part, m)) for m in ("accuracy", "margin", *SPACES, "saturation")]
    found["samg controls"] = tabulate(controls, ("control", RULE[1]), SCALE, *columns)
    columns = [column for measure in SPACES for column in _best_columns(part, measure)]
    found["samg best"] = tabulate(("CFG", *samg.SAMG), ("rule", str), *columns)
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
    found = [at_equal_cfg(part, row, axis, measure) for row in rows]
    return [value for value in found if value.n == part.seeds]


def by_word(part: Part, rule: str, axis: str, measure: str) -> str:
    """better at w = ...; no difference at ...; in the order of the words."""
    scales: dict[str, list[str]] = {word: [] for word in (*QUESTION, "not comparable")}
    for row in rows_of(part, rule, least=FLOOR):
        value = at_equal_cfg(part, row, axis, measure)
        scales[value.word if value.n == part.seeds else "not comparable"].append(SCALE[1](row))
    return ", ".join(f"{word} at {' '.join(found)}" for word, found in scales.items() if found)


def least(part: Part, variant: str, measure: str) -> list[float]:
    """The least of a rule's scales, seed by seed."""
    by_scale = [part.values(row, measure) for row in rows_of(part, variant)]
    return [min(values) for values in zip(*by_scale, strict=True)]


def best_change(part: Part, variant: str, measure: str) -> Estimate:
    pairs = zip(least(part, variant, measure), least(part, "CFG", measure), strict=True)
    return estimate([ours - theirs for ours, theirs in pairs])


def findings(part: Part) -> Iterator[tuple[str, str, str]]:
    """What an earlier study on smaller models found, what is found here, and a verdict."""
    rows = rows_of(part, *RULES, least=FLOOR)
    for axis in (POOLED, "margin"):
        pairs = [(rule, measure) for rule in RULES for measure in SPACES]
        yield (
            f"SAMG from w = {FLOOR:g} up: lower FD than plain guidance at equal {axis}",
            "; ".join(f"{rule}, {SPACES[m]}: {by_word(part, rule, axis, m)}" for rule, m in pairs),
            verdict(votes(value for measure in SPACES for value in comparable(part, rows, axis, measure))),
        )
    shuffled, even = _between(part, "shuffled", "same mean"), _between(part, "quantile", "same norm")
    swapped = {m: comparable(part, rows_of(part, "swapped"), "margin", m) for m in SPACES}
    saturation = comparable(part, rows, "margin", "saturation")
    shares = [part.mean(row, "mean_scale") for row in rows]
    best = {measure: best_change(part, "quantile", measure) for measure in SPACES}
    yield (
        "SAMG's weights at shuffled places do what plain guidance of the same mean does (difference at each w)",
        by_space(lambda m: ", ".join(map(brief, shuffled[m])), " "),
        verdict(votes(chain(*shuffled.values()), "no difference")),
    )
    yield (
        "Swapped weights are much worse than plain guidance at equal margin",
        by_space(lambda m: tally(swapped[m])),
        verdict(votes(chain(*swapped.values()), "worse")),
    )
    yield (
        "Not measured earlier: SAMG quantile against plain guidance with a step of the same length (no curve, no interpolation; w = "
        f"{', '.join(f'{scale:g}' for scale in samg.CONTROLLED)})",
        by_space(lambda m: ", ".join(map(brief, even[m])), " "),
        verdict(votes(chain(*even.values())), QUESTION),
    )
    yield (
        "SAMG does not lower the share of pixels out of range at equal margin",
        tally(saturation),
        verdict(votes(saturation, "not better")),
    )
    yield (
        f"SAMG's mean scale is {SHARE[0]} to {SHARE[1]} of the nominal one",
        f"{min(share.mean for share in shares):.2f} to {max(share.mean for share in shares):.2f}",
        verdict(range_vote(share, *SHARE, neutral=1.0) for share in shares),
    )
    yield (
        "Best scale against best scale SAMG (quantile) gains little",
        by_space(lambda m: f"{_percent(part, best[m], m):+.0f} % ({brief(best[m])})", " "),
        verdict(votes(best.values(), "no difference")),
    )


def _between(part: Part, ours: str, theirs: str) -> dict[str, list[Estimate]]:
    """By measure, at each scale of the controls."""
    pairs = [(samg.name(ours, scale), samg.name(theirs, scale)) for scale in samg.CONTROLLED]
    return {measure: [part.change(*pair, measure) for pair in pairs] for measure in SPACES}


def _percent(part: Part, change: Estimate, measure: str) -> float:
    return 100 * change.mean / estimate(least(part, "CFG", measure)).mean
