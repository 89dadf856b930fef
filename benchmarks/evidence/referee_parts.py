"""Which rows the referee makes: a part is a list of rows, the seeds it is made of, and the model it samples."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from . import stabilise_search
from .comfyui_runs import Seed
from .referee import CANDIDATES, OURS, PEERS, PLAIN, SEARCHED, STABILISE, TCFG, Row, rules, searched_name
from .runs import Results, make

CURVE = (1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 7.5, 9.0, 12.0)  # plain guidance
LONG_CURVE = (*CURVE, 16.0)
SHORT_CURVE = (2.0, 3.0, 4.0, 6.0, 9.0, 12.0)
GUIDANCE = 7.0  # of every rule
FINALISTS = (  # candidates that were promising after one seed, or that were asked for
    *("decorrelated", "decorrelated by half", "decorrelated, compressed 2", "guidance shrunk 1"),
    *("SAMG mean 1", "micrograin 1 %, moments restored", "guidance shrunk 2", "TCFG, guidance shrunk 1"),
    *("guidance shrunk 1, all channels at once", "guidance shrunk 1, by place"),
    *("guidance shrunk 1, compressed 2", "guidance shrunk 1, tonemapping"),
)
SWEPT = (TCFG, "guidance shrunk 1", "TCFG, guidance shrunk 1", "decorrelated", "APG")  # at other guidance too
SWEEP = (4.0, 9.0)
SCREENED = 0  # the seed in which every candidate ran
FIRST = searched_name(*SEARCHED[-1])  # Stabilise's factors after the first search
THIRD = stabilise_search.STRONGEST.name
CONFIRMED = (3.0, 4.0, 5.5, 7.0, 12.0)  # guidance of what is confirmed, beside STRONG
STRONG = 9.0  # at which every peer is compared
NEW = (STABILISE, "SAMG mean of cfg", "AQClip wide")  # after the second search
LATER = ("dynamic thresholding", *NEW)  # not in the first search
ELSEWHERE = (STABILISE, TCFG, "APG", "Mahiro", "RescaleCFG", "micrograin smooth", "AQClip gentle", "SAMG")
SETTINGS = {  # steps, sampler: rules
    **dict.fromkeys([(6, "euler"), (10, "dpmpp_2m"), (20, "euler")], ELSEWHERE),
    (30, "euler"): (STABILISE, TCFG),
}


@dataclass(frozen=True)
class PartOfRows:
    rows: Callable[[int], Iterable[Row]]  # of a seed
    seeds: range
    model: str = "flow"  # of comfyui_runs.MODELS


def first(seed: int) -> Iterator[Row]:
    """The plain curve, every rule at GUIDANCE, then the sweep."""
    yield from (Row(PLAIN, cfg) for cfg in CURVE)
    chosen = CANDIDATES if seed == SCREENED else FINALISTS
    yield from (Row(rule, GUIDANCE) for rule in (*chosen, *PEERS, *OURS) if rule not in LATER)
    yield from (Row(rule, cfg) for cfg in SWEEP for rule in SWEPT)


def searched(seed: int) -> Iterator[Row]:
    """The first search for Stabilise's factors."""
    yield from (Row(PLAIN, cfg) for cfg in CURVE)
    yield from (Row(searched_name(*each), GUIDANCE) for each in SEARCHED)
    yield from (Row(FIRST, cfg) for cfg in (4.0, 9.0, 12.0))


def first_confirmed(seed: int) -> Iterator[Row]:
    """What the first search found, and every other rule, on seeds that chose nothing."""
    yield from (Row(PLAIN, cfg) for cfg in CURVE)
    yield from (Row(rule, cfg) for cfg in (GUIDANCE, 3.0, 4.0, 9.0, 12.0) for rule in (FIRST, TCFG))
    yield from (Row(rule, GUIDANCE) for rule in (*PEERS, *OURS) if rule not in (TCFG, *NEW))


def second(seed: int) -> Iterator[Row]:
    """The second search, which chose Stabilise's defaults: every candidate on the first seeds, finalists on all."""
    yield from (Row(PLAIN, cfg) for cfg in LONG_CURVE)
    yield from (Row(rule, cfg) for rule, cfg in stabilise_search.rows(seed))


def third(seed: int) -> Iterator[Row]:
    """The second search's strongest finalist, as "confirmed" has Stabilise: for cfg 12 its factors were lowered."""
    return confirmed(seed, THIRD)


def confirmed(seed: int, stabilise: str = STABILISE) -> Iterator[Row]:
    """Seeds that chose nothing: the plain curve, Stabilise and TCFG at every guidance, the other peers at STRONG."""
    yield from (Row(PLAIN, cfg) for cfg in LONG_CURVE)
    yield from (Row(rule, cfg) for cfg in (STRONG, *CONFIRMED) for rule in (stabilise, TCFG))
    yield from (Row(rule, STRONG) for rule in PEERS if rule != TCFG)
    yield from (Row(rule, GUIDANCE) for rule in NEW if rule != STABILISE)


def elsewhere(seed: int) -> Iterator[Row]:
    """Other numbers of steps, and another sampler."""
    for setting, rules_there in SETTINGS.items():
        yield from (Row(PLAIN, cfg, *setting) for cfg in SHORT_CURVE)
        yield from (Row(rule, GUIDANCE, *setting) for rule in rules_there)


def other_model(seed: int) -> Iterator[Row]:
    yield from (Row(PLAIN, cfg) for cfg in SHORT_CURVE)
    yield from (Row(rule, cfg) for cfg in (4.0, GUIDANCE) for rule in (STABILISE, TCFG))
    yield Row("SAMG", 4.0)


# What is in "referee-confirmed" and "referee-final" decided nothing about what it confirms.
PARTS = {
    "referee": PartOfRows(first, range(4)),
    "referee-search": PartOfRows(searched, range(4)),
    "referee-confirmed": PartOfRows(first_confirmed, range(4, 11)),
    "referee-second": PartOfRows(second, range(11, 19)),
    "referee-third": PartOfRows(third, range(19, 23)),
    "referee-final": PartOfRows(confirmed, range(23, 31)),
    "referee-elsewhere": PartOfRows(elsewhere, range(4)),
    "referee-eps": PartOfRows(other_model, range(4), "eps"),
    "referee-w4a4": PartOfRows(other_model, range(4), "w4a4"),
}


def measure(part: str, seed: Seed, results: Results) -> None:
    """What is lacking of this part's rows of a seed."""
    patches = rules()

    def measured(row: Row) -> dict[str, float]:
        return seed.measures(patches[row.rule], row.cfg, row.steps, row.sampler)

    make(f"{part}, seed {seed.seed}", PARTS[part].rows(seed.seed), results, measured)
