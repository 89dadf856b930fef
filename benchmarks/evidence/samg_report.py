"""SAMG's section of the report."""

from __future__ import annotations

import math
from collections.abc import Iterator

from . import samg
from .metrics import Estimate, estimate
from .table import Part, brief, difference, markdown, plus_minus, tally

SPACES = {"fd_features": "FD features", "fd_pixels": "FD pixels"}
POOLED = "accuracy, seeds pooled"
AXES = (POOLED, "accuracy", "margin")
RULES = ("minmax", "quantile")
FLOOR = 1.5  # guidance from which the earlier study saw a gain with its flow model


def section(part: Part, image: str) -> Iterator[str]:
    yield "## SAMG against plain guidance"
    yield (
        f"{samg.STEPS} Euler steps. SAMG's weights run from 2/3 w to 1.6 w. `minmax` (the paper's) and `quantile` are its two ways to "
        "normalise the energy, `bound` is the other curve (on quantile). Controls, all made of SAMG quantile's weights at the same w: *shuffled*, the "
        "weights at permuted places; *swapped*, most weight where the energy is highest; *same mean*, plain guidance at each sample's and "
        "step's mean weight; *same norm*, plain guidance whose step away from the unconditional prediction has the same length."
    )
    yield f"![Frechet distance against accuracy and margin]({image})"
    yield "### Each rule at its nominal scale"
    yield nominal(part)
    yield "### Against plain guidance that is just as true to the class"
    yield (
        "At the same nominal w SAMG guides more strongly than plain guidance, so that comparing them there says nothing. Here each run is compared with the "
        "curve of plain guidance, interpolated between its scales (distances in their logarithm), where that has the same accuracy or the same margin. "
        "A cell is a mean difference ± its standard error, the 95 % t interval and a word; less is better in every column. Margin: seed by seed. Accuracy, which is a share of few "
        "samples: once with the means over the seeds (error by the jackknife over seeds), once seed by seed on a curve of fewer scales "
        f"({', '.join(f'{scale:g}' for scale in samg.ACCURACY_CURVE)}). Where plain guidance has stopped gaining accuracy, goes up and down by chance, or does not reach it, there is no such place: "
        "*not comparable*, with the number of seeds that are. *same mean* and *shuffled* are plain guidance at heart: what they show beside 0 is the error of the interpolation."
    )
    for axis in AXES:
        yield f"**At equal {axis}{'' if axis == POOLED else ', seed by seed'}**"
        yield equal_table(part, axis)
    yield "### Does the map matter, or only its size?"
    yield (
        "SAMG quantile minus the control at the same w. *same mean* and *same norm* guide every place alike, with as much weight or as long a step."
    )
    yield controls(part)
    yield "### Best against best"
    yield best(part)


def nominal(part: Part) -> str:
    header = [
        "rule",
        "w",
        "mean scale / w",
        "accuracy, %",
        "margin",
        "FD features",
        "FD pixels",
        "pixels out of range, %",
        "std / real",
    ]
    rows = []
    for row in rows_of(part, ("CFG", *samg.SAMG, *samg.CONTROLS)):
        variant, _, scale = row.rpartition(", ")
        share = "1" if variant == "CFG" else f"{part.mean(row, 'mean_scale').mean:.2f}"
        rows.append(
            [
                variant,
                scale,
                share,
                plus_minus(part.mean(row, "accuracy"), percent=True).removesuffix(" %"),
                *(plus_minus(part.mean(row, measure)) for measure in ("margin", *SPACES)),
                plus_minus(part.mean(row, "saturation"), percent=True).removesuffix(" %"),
                plus_minus(part.mean(row, "spread")),
            ]
        )
    return markdown(header, rows)


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


def rows_of(part: Part, variants: tuple[str, ...], least: float = 0.0) -> list[str]:
    """Rows of these rules, in this order, by rising scale."""
    rows = []
    for variant in variants:
        scales = [float(row.rpartition(", ")[2]) for row in part.names if row.rpartition(", ")[0] == variant]
        rows += [samg.name(variant, scale) for scale in sorted(scales) if scale >= least]
    return rows


def by_word(part: Part, rule: str, axis: str, measure: str) -> str:
    """better at w = ...; no difference at ...; in the order of the words."""
    scales: dict[str, list[str]] = {"better": [], "no difference": [], "worse": [], "not comparable": []}
    for row in rows_of(part, (rule,), FLOOR):
        value = at_equal_cfg(part, row, axis, measure)
        word = value.word if value.n == part.seeds else "not comparable"
        scales[word].append(row.rpartition(", ")[2])
    return ", ".join(f"{word} at {' '.join(found)}" for word, found in scales.items() if found)


def equal_table(part: Part, axis: str) -> str:
    rows = []
    for row in rows_of(part, (*samg.SAMG, *samg.CONTROLS)):
        variant, _, scale = row.rpartition(", ")
        cells = []
        for measure in (*SPACES, "saturation"):
            value = at_equal_cfg(part, row, axis, measure)
            if value.n == part.seeds:
                text = f"{difference(value, percent=measure == 'saturation')} **{value.word}**"
            else:
                text = f"not comparable ({value.n} of {part.seeds})"
            cells.append(text)
        rows.append([variant, scale, *cells])
    return markdown(["rule", "w", *SPACES.values(), "pixels out of range, %"], rows)


def controls(part: Part) -> str:
    rows = []
    for scale in samg.CONTROLLED:
        for control in samg.CONTROLS:
            ours, theirs = samg.name("quantile", scale), samg.name(control, scale)
            changes = [part.change(ours, theirs, measure) for measure in (*SPACES, "saturation")]
            rows.append(
                [
                    control,
                    f"{scale:g}",
                    difference(part.change(ours, theirs, "accuracy"), percent=True),
                    difference(part.change(ours, theirs, "margin")),
                    *(f"{difference(value)} **{value.word}**" for value in changes[:2]),
                    f"{difference(changes[2], percent=True)} **{changes[2].word}**",
                ]
            )
    return markdown(["control", "w", "accuracy, %", "margin", *SPACES.values(), "pixels out of range, %"], rows)


def best(part: Part) -> str:
    """Least FD of each rule over its scales, seed by seed."""
    rows = []
    for variant in ("CFG", *samg.SAMG):
        cells = [variant]
        for measure in SPACES:
            cells.append(plus_minus(estimate(least(part, variant, measure))))
            if variant == "CFG":
                cells.append("")
                continue
            change = best_change(part, variant, measure)
            cells.append(f"{difference(change)} **{change.word}**")
        rows.append(cells)
    header = ["rule", "least FD features", "against CFG's", "least FD pixels", "against CFG's"]
    return (
        "Each rule's least distance over its scales, whatever the accuracy there (minima are taken seed by seed):\n\n"
        + markdown(header, rows)
    )


def least(part: Part, variant: str, measure: str) -> list[float]:
    by_scale = [part.values(row, measure) for row in rows_of(part, (variant,))]
    return [min(values) for values in zip(*by_scale, strict=True)]


def best_change(part: Part, variant: str, measure: str) -> Estimate:
    pairs = zip(least(part, variant, measure), least(part, "CFG", measure), strict=True)
    return estimate([ours - theirs for ours, theirs in pairs])


def findings(part: Part) -> Iterator[tuple[str, str, str]]:
    """What an earlier study on smaller models found, what is found here, and a verdict."""
    rows = rows_of(part, RULES, FLOOR)
    for axis in (POOLED, "margin"):
        here = "; ".join(
            f"{rule}, {label}: {by_word(part, rule, axis, measure)}"
            for rule in RULES
            for measure, label in SPACES.items()
        )
        found = [comparable(part, rows, axis, measure) for measure in SPACES]
        yield f"SAMG from w = {FLOOR:g} up: lower FD than plain guidance at equal {axis}", here, _gain_verdict(*found)
    shuffled = [
        part.change(samg.name("shuffled", scale), samg.name("same mean", scale), measure)
        for measure in SPACES
        for scale in samg.CONTROLLED
    ]
    yield (
        "SAMG's weights at shuffled places do what plain guidance of the same mean does (difference at each w)",
        "; ".join(
            f"{label} {', '.join(brief(value) for value in shuffled[i * len(samg.CONTROLLED) :][: len(samg.CONTROLLED)])}"
            for i, label in enumerate(SPACES.values())
        ),
        "reproduced" if {value.word for value in shuffled} == {"no difference"} else "not reproduced",
    )
    swapped = [comparable(part, rows_of(part, ("swapped",)), "margin", measure) for measure in SPACES]
    words = [value.word for values in swapped for value in values]
    yield (
        "Swapped weights are much worse than plain guidance at equal margin",
        "; ".join(f"{label}: {tally(values)}" for label, values in zip(SPACES.values(), swapped, strict=True)),
        _loss_verdict(words),
    )
    even = [
        part.change(samg.name("quantile", scale), samg.name("same norm", scale), measure)
        for measure in SPACES
        for scale in samg.CONTROLLED
    ]
    even_words = {value.word for value in even}
    yield (
        "Not measured earlier: SAMG quantile against plain guidance with a step of the same length (no curve, no interpolation; w = "
        f"{', '.join(f'{scale:g}' for scale in samg.CONTROLLED)})",
        "; ".join(
            f"{label} {', '.join(brief(value) for value in even[i * len(samg.CONTROLLED) :][: len(samg.CONTROLLED)])}"
            for i, label in enumerate(SPACES.values())
        ),
        even_words.pop() if len(even_words) == 1 else "mixed",
    )
    saturation = comparable(part, rows, "margin", "saturation")
    yield (
        "SAMG does not lower the share of pixels out of range at equal margin",
        tally(saturation),
        "reproduced" if "better" not in {value.word for value in saturation} else "refuted",
    )
    shares = [part.mean(row, "mean_scale").mean for row in rows]
    yield (
        "SAMG's mean scale is 1.43 to 1.48 of the nominal one",
        f"{min(shares):.2f} to {max(shares):.2f}",
        "reproduced" if min(shares) > 1.38 and max(shares) < 1.53 else "refuted",
    )
    best_changes = [best_change(part, "quantile", measure) for measure in SPACES]
    yield (
        "Best scale against best scale SAMG (quantile) gains little",
        "; ".join(
            f"{label} {100 * value.mean / math.fsum(least(part, 'CFG', key)) * part.seeds:+.0f} % ({brief(value)})"
            for (key, label), value in zip(SPACES.items(), best_changes, strict=True)
        ),
        "reproduced" if "worse" not in {value.word for value in best_changes} else "refuted",
    )


def _loss_verdict(words: list[str]) -> str:
    if not words:
        return "cannot be judged here"
    if "worse" not in words:
        return "refuted: " + ("better" if words.count("better") > len(words) / 2 else "not worse")
    return "reproduced" if set(words) == {"worse"} else "in part"


def _gain_verdict(features: list[Estimate], pixels: list[Estimate]) -> str:
    words = [value.word for value in (*features, *pixels)]
    if not words:
        return "cannot be judged here"
    if "better" not in words:
        return "refuted: " + ("worse" if words.count("worse") > len(words) / 2 else "no gain")
    if words.count("worse") > words.count("better"):
        return "refuted: more often worse than better"
    if "worse" in words:
        return "refuted in part"
    return "reproduced" if words.count("better") > len(words) / 2 else "reproduced in part"
