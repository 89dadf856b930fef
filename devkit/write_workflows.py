"""Write workflows/*.json, subgraphs/*.json and the demo's workflows from the recipes, with the nodes as a real ComfyUI describes
them. Called by `dev.py workflows`; with --thumbnails it draws workflows/*.jpg and docs/workflows/*.png instead."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from devkit import base, thumbnails
from devkit.paths import Stop
from devkit.recipes import DEMO_RECIPES, RECIPES, write
from devkit.recipes.blueprints import BLUEPRINTS
from devkit.server import Server


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--comfyui", type=Path, required=True)
    parser.add_argument("--thumbnails", nargs="*", metavar="NAME", help="draw the pictures (of all, or of these)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, Server(args.comfyui, base.make(Path(folder))) as server:
        if args.thumbnails is None:
            write_all(server.get("/object_info"))
        else:
            names = args.thumbnails or list(RECIPES)
            thumbnails.draw(server, [ROOT / "workflows" / f"{name}.json" for name in names])


def write_all(known: dict) -> None:
    for folder, names in ((ROOT / "workflows", RECIPES), (ROOT / "demo" / "workflows", DEMO_RECIPES)):
        for name in names:
            saved = write(name, known).saved()
            _write(folder / f"{name}.json", saved)
            if names is RECIPES:
                thumbnails.renew(name, saved)
    for make in BLUEPRINTS:
        blueprint = make(known)
        _write(ROOT / "subgraphs" / f"{blueprint.name}.json", blueprint.saved())


def _write(path: Path, saved: dict) -> None:
    path.write_text(json.dumps(saved, indent=1) + "\n", encoding="utf-8")
    print(f"Wrote {path}")


if __name__ == "__main__":
    try:
        main()
    except Stop as stop:
        sys.exit(f"workflows: {stop}")
