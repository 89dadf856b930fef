"""Files and functions of the pack stay small enough to be read at once."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FILES = [path for folder in ("core", "calibration", "host", "nodes") for path in sorted((ROOT / folder).rglob("*.py"))]
MOST_LINES, MOST_FUNCTION_LINES, MOST_PARAMETERS = 250, 60, 8
# A node's inputs, one parameter each, or a public function that has them as keywords.
MANY_INPUTS = {"aqclip", "execute", "fingerprint_inputs", "validate_inputs", "make_schedule", "make_plan", "sample"}


def functions(tree):
    return [each for each in ast.walk(tree) if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef)]


def code_lines(function):
    """Lines of the body after the docstring."""
    body = function.body[1:] if ast.get_docstring(function) is not None else function.body
    return body[-1].end_lineno - body[0].lineno + 1 if body else 0


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_sizes(path):
    text = path.read_text(encoding="utf-8")
    lines = len(text.splitlines())
    assert lines <= MOST_LINES
    for function in functions(ast.parse(text)):
        assert code_lines(function) <= MOST_FUNCTION_LINES, function.name
        parameters = [p.arg for p in (*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs)]
        count = len([name for name in parameters if name not in ("self", "cls")])
        assert count <= MOST_PARAMETERS or function.name in MANY_INPUTS, f"{function.name} takes {count}"
