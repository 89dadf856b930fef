"""What README, tooltips and help claim about guidance and clamps: each sentence of docs/claims.json stands where it says, and
the stored rows still give what it claims.

A thing held is one of
- a row against a rule's curve at equal strength: part, row, against, axis, measure, word, perhaps percent, as a number or
  as the ends of a range;
- Stabilise over plain guidance of its strength, against a peer over plain guidance of its own: the same with "peer": true;
- a row against another row: part, row, base, measure, word, perhaps percent;
- a row's own mean: part, row, measure, mean.
"""

import ast
import json
import math
from pathlib import Path

import pytest
from evidence import referee_parts, referee_report, samg_report, stabilise_report
from evidence.metrics import estimate
from evidence.table import Part

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "evidence" / "results"
CLAIMS = json.loads((ROOT / "docs" / "claims.json").read_text(encoding="utf-8"))

each = pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim["sentence"][:40])


def texts(path):
    """What a reader sees: a page as it is, a node's strings joined as Python joins them."""
    source = (ROOT / path).read_text(encoding="utf-8")
    if not path.endswith(".py"):
        return " ".join(source.split())
    strings = (node.value for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Constant))
    return "\n".join(value for value in strings if isinstance(value, str))


def at_equal_strength(part, held):
    """Logarithm of the ratio; of SAMG's own part, the difference."""
    if held["part"] == "samg":
        return samg_report.at_equal_cfg(part, held["row"], held["axis"], held["measure"])
    rows = referee_parts.PARTS[held["part"]].rows(part.stored[0]["about"]["seed"])
    (row,) = [row for row in rows if row.name == held["row"]]
    if held.get("peer"):
        return estimate(stabilise_report.peer_ratio(part, row, held["axis"], held["measure"]))
    return referee_report.ratio(part, row, held["axis"], held["measure"], held["against"])


def found(part, held):
    return (
        part.log_change(held["row"], held["base"], held["measure"])
        if "base" in held
        else at_equal_strength(part, held)
    )


@each
def test_the_sentence_stands_there(claim):
    assert claim["in"] and not [path for path in claim["in"] if claim["sentence"] not in texts(path)]


@each
def test_the_rows_support_it(claim):
    assert claim["holds"]
    for held in claim["holds"]:
        part = Part(RESULTS, held["part"])
        if "mean" in held:
            mean = part.mean(held["row"], held["measure"]).mean
            assert round(mean) == held["mean"], (held, mean)
            continue
        value = found(part, held)
        assert value.n == part.seeds and value.word == held["word"], (held, value)
        if "percent" in held:
            ends = held["percent"] if isinstance(held["percent"], list) else [held["percent"]]
            assert ends[0] <= round(100 * math.expm1(value.mean)) <= ends[-1], (held, value)
