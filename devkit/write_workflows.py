"""Write workflows/*.json from the recipes, with the nodes as a real ComfyUI describes them. Called by `dev.py workflows`."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from devkit import base
from devkit.author import Workflow
from devkit.recipes import RECIPES
from devkit.server import Server


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--comfyui", type=Path, required=True)
    parser.add_argument("--output", type=Path, default=ROOT / "workflows")
    args = parser.parse_args()
    args.output.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, Server(args.comfyui, base.make(Path(folder))) as server:
        known = server.get("/object_info")
    for recipe in RECIPES:
        flow = Workflow(known)
        recipe(flow)
        path = args.output / f"{recipe.__name__}.json"
        path.write_text(json.dumps(flow.saved(), indent=1) + "\n", encoding="utf-8")
        print(f"Wrote {path}")


if __name__ == "__main__":
    main()
