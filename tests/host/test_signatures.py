"""Node ids, inputs and outputs, as the server tells them, are those that saved workflows rely on.

A saved workflow names its nodes by id, its links by the inputs' and outputs' names and places, and its options by their
places and values. Take one away, rename it, or put one in the middle, and every workflow saved before opens wrong. So
signatures.json changes only on purpose, by

    python dev.py test tests/host/test_signatures.py --update-signatures

New nodes are free. On a released node, append new inputs behind the others, with a default that does what was done before.
"""

import difflib
import json
from pathlib import Path

import pytest

SNAPSHOT = Path(__file__).with_name("signatures.json")
SAVED = ("default", "min", "max")  # of what the server says of an option; the rest no workflow holds
# Lists that belong to the host or to the user's folders.
HOST_LISTS = {"sampler_name", "scheduler", "file", "trajectory"}


def signature(node):
    return {
        "inputs": [
            input_of(name, optional, *spec)
            for optional, group in ((False, "required"), (True, "optional"))
            for name, spec in node["input"].get(group, {}).items()
        ],
        "outputs": [list(pair) for pair in zip(node["output_name"], node["output"], strict=True)],
    }


def input_of(name, optional, kind, told=None):
    told = told or {}
    combo = isinstance(kind, list)  # ComfyUI tells a combo's options in two ways, by version
    found = {"name": name, "type": "COMBO" if combo else kind, "optional": optional}
    found |= {key: told[key] for key in SAVED if told.get(key) is not None}
    if (combo or "options" in told) and name not in HOST_LISTS:
        found["options"] = kind if combo else told["options"]
    return found


def written(signatures):
    """JSON with a line for each input, so that a difference is easy to read."""
    nodes = []
    for name, node in signatures.items():
        inputs = ",\n".join("   " + json.dumps(one) for one in node["inputs"])
        nodes.append(f' "{name}": {{\n  "inputs": [\n{inputs}\n  ],\n  "outputs": {json.dumps(node["outputs"])}\n }}')
    return "{\n" + ",\n".join(nodes) + "\n}\n"


@pytest.fixture(scope="module")
def signatures(server):
    info = server.get("/object_info")
    ours = {name: node for name, node in info.items() if node["python_module"].endswith("custom_nodes.gimbal")}
    return {name: signature(ours[name]) for name in sorted(ours)}


def test_saved_workflows_still_fit(signatures, request):
    now = written(signatures)
    if request.config.getoption("--update-signatures"):
        SNAPSHOT.write_text(now, encoding="utf-8")
    then = SNAPSHOT.read_text(encoding="utf-8")
    difference = "\n".join(difflib.unified_diff(then.splitlines(), now.splitlines(), "released", "now", lineterm=""))
    assert now == then, f"{difference}\n\n{__doc__}"
