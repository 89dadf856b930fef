"""QSilk's tables, and verdicts on earlier claims."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial
from itertools import chain

from . import qsilk
from .metrics import Estimate
from .table import SPACES, TITLES, Part, brief, difference, means, tabulate, worded
from .verdicts import QUESTION, finding, range_vote, votes

SAFE = ("micrograin hard", "micrograin smooth", "AQClip gentle")
STRONG = "AQClip strong"
SOLVERS = {"euler": "Euler"}
BURNING = 6.0  # guidance from which it burns
ALONE, DAMAGED = 45.0, 25.0  # dB on real latents: at least, and at most
STATE = ("accuracy", "saturation", "tail", "kurtosis", "spread")
# Settings with a curve of plain guidance.
ON_CURVE = [each for each in qsilk.SETTINGS if each[1:] == (qsilk.SHEET_STEPS, "euler")]
SamplingSetting = tuple[float, int, str]  # guidance, steps, solver


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
        "QSilk, by setting": "\n\n".join(settings),
        "QSilk at equal contrast": tabulate(equal, *named, *columns, margin),
        "QSilk on real latents": tabulate(real.names, ("method", str), *once, *means(real, *SPACES, *STATE)),
    }


def rows_of(part: Part, setting: SamplingSetting) -> dict[str, str]:
    """Method -> row."""
    named = {method: qsilk.name(method, *setting) for method in qsilk.methods()}
    return {method: row for method, row in named.items() if row in part}


def _table(part: Part, setting: SamplingSetting) -> str:
    rows = {row: method for method, row in rows_of(part, setting).items()}
    base = qsilk.name(qsilk.PLAIN, *setting)
    columns = []
    for measure in SPACES:
        change = partial(part.change, base=base, measure=measure)
        columns += means(part, measure)
        columns.append(("change", lambda row, m=measure, of=change: "" if row == base else worded(of(row), m)))
    return tabulate(rows, ("method", rows.get), *columns, *means(part, *STATE))


def _equal_cell(part: Part, measure: str, each: tuple[SamplingSetting, str, str]) -> str:
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
    """Against plain, by distance, in the settings of BURNING guidance and more, or in those below."""
    settings = [each for each in qsilk.SETTINGS if (each[0] >= BURNING) == burning]
    pairs = [(rows[method], rows[qsilk.PLAIN]) for rows in (rows_of(part, s) for s in settings) if method in rows]
    prefix = "" if burning else "guidance 3, "
    return {f"{prefix}{SPACES[measure]}": [part.change(*pair, measure) for pair in pairs] for measure in SPACES}


def findings(part: Part, real: Part) -> Iterator[tuple[str, str, str]]:
    def on_real(method: str, low: float, high: float) -> dict[str, list[int]]:
        psnr = real.mean(method, "psnr")
        neutral = low if math.isfinite(low) else high
        return {f"{psnr.mean:.1f} dB on real latents": [range_vote(psnr, low, high, neutral)]}

    for method in SAFE:
        yield finding(f"{method}: a small gain at guidance 6 and more", changes(part, method))
        claim = f"{method}: leaves clean latents and normal guidance alone ({ALONE:g} dB or more, not worse)"
        at_low = changes(part, method, burning=False)
        yield finding(claim, at_low, "not worse", ranges=on_real(method, ALONE, math.inf))
    claim = f"{STRONG}: a larger gain at guidance 6 and more, at a cost at guidance 3"
    cost = votes(chain(*changes(part, STRONG, burning=False).values()), "worse")
    extent = "; ".join(f"{label} {brief(*values)}" for label, values in changes(part, STRONG, burning=False).items())
    yield finding(claim, changes(part, STRONG), ranges={extent: cost})
    for method in ("micrograin tanh", "AQClip paper"):
        claim = f"{method}: damages pictures at normal guidance ({DAMAGED:g} dB or less, worse)"
        at_low = changes(part, method, burning=False)
        yield finding(claim, at_low, "worse", ranges=on_real(method, -math.inf, DAMAGED))
    yield finding("No limit at guidance 6 comes near plain guidance 3", _against_less_guidance(part), "worse")
    for method in (*SAFE, STRONG):
        rows = [rows_of(part, each).get(method) for each in ON_CURVE if each[0] >= BURNING]
        found = {SPACES[m]: [against_plain(part, row, m) for row in rows if row] for m in SPACES}
        found = {label: [value for value in values if value.n == part.seeds] for label, values in found.items()}
        claim = f"Not measured earlier: {method} at guidance 6 and more against plain guidance lowered to the same contrast"
        yield finding(claim, found, words=QUESTION)


def _against_less_guidance(part: Part) -> dict[str, list[Estimate]]:
    """The best of the limits at guidance 6 against plain guidance 3, in the same number of steps."""
    plain = rows_of(part, ON_CURVE[0])[qsilk.PLAIN]
    limited = {row: method for method, row in rows_of(part, ON_CURVE[1]).items() if method != qsilk.PLAIN}
    best = {m: min(limited, key=lambda row, m=m: part.mean(row, m).mean) for m in SPACES}
    return {f"{SPACES[m]}, {limited[row]}": [part.change(row, plain, m)] for m, row in best.items()}
