"""What README, tooltips and help claim about guidance: each sentence of docs/claims.json stands where it says, and the
stored rows still give what it claims."""

import ast
import json
import math
from pathlib import Path

import pytest
from evidence import referee, referee_report
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


@each
def test_the_sentence_stands_there(claim):
    assert claim["in"] and not [path for path in claim["in"] if claim["sentence"] not in texts(path)]


@each
def test_the_rows_support_it(claim):
    assert claim["holds"]
    for held in claim["holds"]:
        part = Part(RESULTS, held["part"])
        (row,) = [
            row for row in referee.PARTS[held["part"]][0](part.stored[0]["about"]["seed"]) if row.name == held["row"]
        ]
        found = referee_report.ratio(part, row, held["axis"], held["measure"], held["against"])
        assert found.n == part.seeds and found.word == held["word"], (held, found)
        if "percent" in held:
            assert round(100 * math.expm1(found.mean)) == held["percent"]
