"""Tables of how Stabilise's defaults were found, and of what was confirmed on seeds that chose nothing."""

from __future__ import annotations

from copy import copy
from pathlib import Path

from . import referee, referee_parts
from .metrics import estimate
from .referee import PLAIN, STABILISE, TCFG, Row
from .referee_parts import CONFIRMED, ELSEWHERE, FIRST, GUIDANCE, STRONG, THIRD
from .referee_report import STRENGTH, compared, each_cell, logarithms, percent, ratio
from .table import Part, tabulate


def tables(folder: Path) -> dict[str, str]:
    """Markdown by name."""
    parts = {name: Part(folder, name) for name in referee_parts.PARTS}
    final = parts["referee-final"]
    return {
        "search": compared(parts["referee-search"], _rules_of("referee-search")),
        "first confirmed": compared(parts["referee-confirmed"], _first_confirmed()),
        "second search": _second(parts["referee-second"]),
        "third": compared(parts["referee-third"], swept(THIRD)),
        "confirmed": compared(final, [*swept(STABILISE), *swept(TCFG)]),
        "others confirmed": compared(final, others(final)),
        "against TCFG": _against_tcfg(final),
        "against peers": _against_peers(final),
        "elsewhere": _elsewhere(parts["referee-elsewhere"]),
        "eps": compared(parts["referee-eps"], _rules_of("referee-eps")),
        "w4a4": compared(parts["referee-w4a4"], _rules_of("referee-w4a4")),
    }


def _rules_of(name: str) -> list[Row]:
    """The rows of a part's first seed, but for plain guidance."""
    part = referee_parts.PARTS[name]
    return [row for row in part.rows(part.seeds[0]) if row.rule != PLAIN]


def _first_confirmed() -> list[Row]:
    """The first choice by rising cfg, then every other rule at GUIDANCE."""
    rows = _rules_of("referee-confirmed")
    first = sorted((row for row in rows if row.rule == FIRST), key=lambda row: row.cfg)
    return [*first, *(row for row in rows if row.rule != FIRST and row.cfg == GUIDANCE)]


def swept(rule: str) -> list[Row]:
    return [Row(rule, cfg) for cfg in sorted({STRONG, *CONFIRMED})]


def others(part: Part) -> list[Row]:
    """Every other rule, at each guidance it was made at."""
    rules = [rule for rule in (*referee.OURS, *referee.PEERS) if rule not in (STABILISE, TCFG)]
    rows = (Row(rule, cfg) for rule in rules for cfg in (GUIDANCE, STRONG))
    return [row for row in rows if row.name in part]


def with_row(part: Part, row: Row) -> Part:
    """The part's seeds in which this row was made."""
    found = copy(part)
    found.stored = [seed for seed in part.stored if row.name in seed["runs"]]
    return found


def _second(part: Part) -> str:
    """Candidates of the second search, each on its own seeds; finalists and rivals below."""

    def cell(axis: str, measure: str, row: Row) -> str:
        own = with_row(part, row)
        return percent(ratio(own, row, axis, measure), own.seeds)

    return tabulate(
        _rules_of("referee-second"),
        ("rule", lambda row: row.rule),
        ("cfg", lambda row: f"{row.cfg:g}"),
        ("seeds", lambda row: str(with_row(part, row).seeds)),
        *each_cell(cell, STRENGTH),
    )


def _against_tcfg(part: Part) -> str:
    """Stabilise against TCFG's own curve over cfg, at Stabilise's strength."""

    def cell(axis: str, measure: str, row: Row) -> str:
        return percent(ratio(part, row, axis, measure, TCFG), part.seeds)

    return tabulate(swept(STABILISE), ("cfg of Stabilise", lambda row: f"{row.cfg:g}"), *each_cell(cell))


def peer_ratio(part: Part, row: Row, axis: str, measure: str) -> list[float]:
    """Logarithms, seed by seed: how far Stabilise is below plain guidance of its strength, over how far a peer of the same
    cfg is below plain guidance of its own."""
    ours = logarithms(part, Row(STABILISE, row.cfg), axis, measure)
    return [mine - theirs for mine, theirs in zip(ours, logarithms(part, row, axis, measure), strict=True)]


def _against_peers(part: Part) -> str:
    def cell(axis: str, measure: str, row: Row) -> str:
        return percent(estimate(peer_ratio(part, row, axis, measure)), part.seeds)

    rows = [Row(rule, STRONG) for rule in referee.PEERS]
    columns = ("peer", lambda row: row.rule), ("cfg", lambda row: f"{row.cfg:g}")
    return tabulate([row for row in rows if row.name in part], *columns, *each_cell(cell, STRENGTH))


def _elsewhere(part: Part) -> str:
    settings = referee_parts.SETTINGS.items()
    rows = [Row(rule, GUIDANCE, *setting) for rule in ELSEWHERE for setting, rules in settings if rule in rules]
    return compared(part, rows, ("setting", lambda row: f"{row.steps} {row.sampler}"))
