"""Write workflows/*.json and those of the demo from the recipes, with the nodes as a real ComfyUI describes them. Called by `dev.py workflows`."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from devkit import base
from devkit.recipes import DEMO_RECIPES, RECIPES, write
from devkit.server import Server


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--comfyui", type=Path, required=True)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, Server(args.comfyui, base.make(Path(folder))) as server:
        known = server.get("/object_info")
    for recipe in (*RECIPES, *DEMO_RECIPES):
        folder = ROOT / "workflows" if recipe in RECIPES else ROOT / "demo" / "workflows"
        path = folder / f"{recipe.__name__}.json"
        path.write_text(json.dumps(write(recipe, known).saved(), indent=1) + "\n", encoding="utf-8")
        print(f"Wrote {path}")


if __name__ == "__main__":
    main()
