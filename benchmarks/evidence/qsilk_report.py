"""QSilk's tables, and what they say of earlier claims."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial
from itertools import chain

from . import qsilk
from .metrics import Estimate
from .table import SPACES, TITLES, Part, brief, by_space, difference, means, plus_minus, tabulate, tally, worded
from .verdicts import QUESTION, range_vote, verdict, votes

SAFE = ("micrograin hard", "micrograin smooth", "AQClip gentle")
STRONG = "AQClip strong"
SOLVERS = {"euler": "Euler"}
BURNING = 6.0  # guidance from which it burns
ALONE, DAMAGED = 45.0, 25.0  # dB on real latents: at least, and at most
STATE = ("accuracy", "saturation", "tail", "kurtosis", "spread")
ON_CURVE = [
    each for each in qsilk.SETTINGS if each[1:] == (qsilk.SHEET_STEPS, "euler")
]  # equal contrast is known there
Setting = tuple[float, int, str]  # guidance, steps, solver


def tables(part: Part, real: Part) -> dict[str, str]:
    settings = []
    for setting in qsilk.SETTINGS:
        guidance, steps, solver = setting
        settings += [f"### Guidance {guidance:g}, {steps} {SOLVERS.get(solver, solver)} steps", _table(part, setting)]
    equal = [
        (setting, method, row)
        for setting in ON_CURVE
        for method, row in rows_of(part, setting).items()
        if method != qsilk.PLAIN
    ]
    named = [("guidance", lambda each: f"{each[0][0]:g}"), ("method", lambda each: each[1])]
    columns = [(TITLES[m], partial(_equal_cell, part, m)) for m in (*SPACES, "saturation")]
    margin = ("margin (more is better)", partial(_equal_cell, part, "margin"))
    once = [("PSNR, dB", partial(_plain, real, "psnr", 1)), ("change", partial(_plain, real, "change", 4))]
    return {
        "qsilk settings": "\n\n".join(settings),
        "qsilk equal": tabulate(equal, *named, *columns, margin),
        "qsilk real": tabulate(real.names, ("method", str), *once, *means(real, *SPACES, *STATE)),
    }


def rows_of(part: Part, setting: Setting) -> dict[str, str]:
    """Method -> row."""
    named = {method: qsilk.name(method, *setting) for method in qsilk.methods()}
    return {method: row for method, row in named.items() if row in part}


def _table(part: Part, setting: Setting) -> str:
    rows = {row: method for method, row in rows_of(part, setting).items()}
    base = qsilk.name(qsilk.PLAIN, *setting)
    columns = []
    for measure in SPACES:
        change = partial(part.change, base=base, measure=measure)
        columns += means(part, measure)
        columns.append(("change", lambda row, m=measure, of=change: "" if row == base else worded(of(row), m)))
    return tabulate(rows, ("method", rows.get), *columns, *means(part, *STATE))


def _equal_cell(part: Part, measure: str, each: tuple[Setting, str, str]) -> str:
    value = against_plain(part, each[2], measure)
    if measure != "margin":
        return worded(value, measure, part.seeds)
    return difference(value) if value.n == part.seeds else "-"


def _plain(real: Part, measure: str, digits: int, row: str) -> str:
    return f"{real.mean(row, measure).mean:.{digits}f}" if real.measured(row, measure) else ""


def against_plain(part: Part, row: str, measure: str) -> Estimate:
    """row minus the curve of plain guidance, where that has row's contrast."""
    curve = [qsilk.name(qsilk.PLAIN, guidance, qsilk.SHEET_STEPS, "euler") for guidance in qsilk.CURVE]
    return part.against_curve(row, curve, "spread", measure, log=measure in SPACES)


def changes(part: Part, method: str, burning: bool = True) -> dict[str, list[Estimate]]:
    """Against plain, by measure, in the settings of BURNING guidance and more, or in those below."""
    settings = [each for each in qsilk.SETTINGS if (each[0] >= BURNING) == burning]
    pairs = [(rows[method], rows[qsilk.PLAIN]) for rows in (rows_of(part, s) for s in settings) if method in rows]
    return {measure: [part.change(*pair, measure) for pair in pairs] for measure in SPACES}


def findings(part: Part, real: Part) -> Iterator[tuple[str, str, str]]:
    high, low = ({m: changes(part, m, burning) for m in qsilk.methods()} for burning in (True, False))
    psnr = {method: real.mean(method, "psnr") for method in real.names if real.measured(method, "psnr")}

    def cast(found: dict[str, list[Estimate]], claimed: str) -> list[int]:
        return votes(chain(*found.values()), claimed)

    def gains(method: str) -> str:
        return by_space(lambda m: f"{tally(high[method][m])}, {_shares(part, method, m)}")

    def at_low(method: str) -> str:
        return "at guidance 3 " + by_space(lambda m: brief(low[method][m][0]), " ")

    for method in SAFE:
        yield f"{method}: a small gain at guidance 6 and more", gains(method), verdict(cast(high[method], "better"))
        alone = [range_vote(psnr[method], ALONE, math.inf, ALONE), *cast(low[method], "not worse")]
        yield (
            f"{method}: leaves clean latents and normal guidance alone ({ALONE:g} dB or more, not worse)",
            f"{psnr[method].mean:.1f} dB on real latents; {at_low(method)}",
            verdict(alone),
        )
    yield (
        f"{STRONG}: a larger gain at guidance 6 and more, at a cost at guidance 3",
        f"{gains(STRONG)}; {at_low(STRONG)}",
        verdict(cast(high[STRONG], "better") + cast(low[STRONG], "worse")),
    )
    for method in ("micrograin tanh", "AQClip paper"):
        yield (
            f"{method}: damages pictures at normal guidance ({DAMAGED:g} dB or less, worse)",
            f"{psnr[method].mean:.1f} dB on real latents; {at_low(method)}; at 6 and more "
            + by_space(lambda m, of=high[method]: tally(of[m])),
            verdict([range_vote(psnr[method], -math.inf, DAMAGED, DAMAGED), *cast(low[method], "worse")]),
        )
    yield _against_less_guidance(part)
    for method in (*SAFE, STRONG):
        rows = [rows_of(part, each).get(method) for each in ON_CURVE if each[0] >= BURNING]
        found = {m: [against_plain(part, row, m) for row in rows if row] for m in SPACES}
        found = {m: [value for value in values if value.n == part.seeds] for m, values in found.items()}
        yield (
            f"Not measured earlier: {method} at guidance 6 and more against plain guidance lowered to the same contrast",
            by_space(lambda m, of=found: tally(of[m])),
            verdict(cast(found, "better"), QUESTION),
        )
    rows = rows_of(part, ON_CURVE[0])
    shown = [
        f"{m} {plus_minus(part.mean(rows[m], 'spread'))}" for m in (qsilk.PLAIN, SAFE[2], f"{SAFE[2]}, no average")
    ]
    yield (
        "Not measured earlier: what AQClip's running average does to contrast",
        f"std / real at guidance 3: {'; '.join(shown)}",
        "no claim",
    )


def _against_less_guidance(part: Part) -> tuple[str, str, str]:
    """The best of the limits at guidance 6 against plain guidance 3, in the same number of steps."""
    plain = rows_of(part, ON_CURVE[0])[qsilk.PLAIN]
    limited = {row: method for method, row in rows_of(part, ON_CURVE[1]).items() if method != qsilk.PLAIN}
    best = {m: min(limited, key=lambda row, m=m: part.mean(row, m).mean) for m in SPACES}

    def shown(measure: str) -> str:
        ours, theirs = (plus_minus(part.mean(row, measure)) for row in (best[measure], plain))
        return f"best is {limited[best[measure]]}, {ours} against {theirs}"

    beaten = votes((part.change(best[m], plain, m) for m in SPACES), "worse")
    return "No limit at guidance 6 comes near plain guidance 3", by_space(shown), verdict(beaten)


def _shares(part: Part, method: str, measure: str) -> str:
    """Range of the relative changes at guidance 6 and more."""
    found = [rows_of(part, each) for each in qsilk.SETTINGS if each[0] >= BURNING]
    pairs = [[part.mean(rows[m], measure).mean for m in (method, qsilk.PLAIN)] for rows in found if method in rows]
    shares = [100 * (ours - plain) / plain for ours, plain in pairs]
    return f"{min(shares):+.0f} to {max(shares):+.0f} %"
