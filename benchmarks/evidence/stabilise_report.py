"""Tables of what was confirmed about Stabilise on seeds that chose nothing."""

from __future__ import annotations

from pathlib import Path

from . import referee
from .metrics import estimate
from .referee import CONFIRMED, GUIDANCE, STABILISE, TCFG, Row
from .referee_report import STRENGTH, compared, each_cell, logarithms, percent, ratio
from .table import Part, tabulate


def tables(folder: Path) -> dict[str, str]:
    """Markdown by name."""
    confirmed = Part(folder, "referee-confirmed")
    search = Part(folder, "referee-search")
    rows = [row for row in referee.searched(0) if row.rule != referee.PLAIN]
    return {
        "search": compared(search, rows),
        "confirmed": compared(confirmed, swept()),
        "others confirmed": compared(confirmed, others(confirmed)),
        "against TCFG": _against_tcfg(confirmed),
        "against peers": _against_peers(confirmed),
    }


def swept() -> list[Row]:
    return [Row(rule, cfg) for rule in (STABILISE, TCFG) for cfg in sorted({GUIDANCE, *CONFIRMED})]


def others(part: Part) -> list[Row]:
    """Every other rule at GUIDANCE."""
    rules = [rule for rule in (*referee.OURS, *referee.PEERS) if rule not in (STABILISE, TCFG)]
    return [row for row in (Row(rule, GUIDANCE) for rule in rules) if row.name in part]


def _against_tcfg(part: Part) -> str:
    """Stabilise against TCFG's own curve over cfg, at Stabilise's strength."""

    def cell(axis: str, measure: str, row: Row) -> str:
        return percent(ratio(part, row, axis, measure, TCFG), part.seeds)

    rows = [row for row in swept() if row.rule == STABILISE]
    return tabulate(rows, ("cfg of Stabilise", lambda row: f"{row.cfg:g}"), *each_cell(cell))


def _against_peers(part: Part) -> str:
    """How far Stabilise is below plain guidance of its strength, over how far a peer is below plain guidance of its own."""
    ours = Row(STABILISE, GUIDANCE)

    def cell(axis: str, measure: str, row: Row) -> str:
        pairs = zip(logarithms(part, ours, axis, measure), logarithms(part, row, axis, measure), strict=True)
        return percent(estimate([mine - theirs for mine, theirs in pairs]), part.seeds)

    peers = [row for row in others(part) if row.rule in referee.PEERS]
    return tabulate(peers, ("peer", lambda row: row.rule), *each_cell(cell, STRENGTH))
