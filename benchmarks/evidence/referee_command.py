"""Guidance rules and limits against plain guidance of equal strength, by real ComfyUI sampling of the letters model.

    python dev.py bench referee [--parts=referee-confirmed] [--seeds=4,5]

A part's rows are in benchmarks/evidence/results/PART-seedN.json; all parts take about an hour of one core, the first three and "referee-final" 35 minutes. Rows that are stored are not made again: on a fresh clone this writes docs/EQUAL_STRENGTH.md and its figure only.
"""

from __future__ import annotations

import argparse
import sys
from functools import cache, partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import _gimbal
import torch

from evidence import comfyui_runs, figures, judge, referee_parts, referee_report, report, runs, stabilise_report, table
from evidence.subjects import weights

ROOT = _gimbal.ROOT
RESULTS = ROOT / "benchmarks" / "evidence" / "results"
DOCUMENT = ROOT / "docs" / "EQUAL_STRENGTH.md"
SAMPLES = 32
PRECISION = "float32"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--comfyui", type=Path, required=True, help="a ComfyUI checkout")
    parser.add_argument("--parts", default=",".join(referee_parts.PARTS), help="comma-separated")
    parser.add_argument("--seeds", default="", help="comma-separated; default: all of a part")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the rows")
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.results.mkdir(parents=True, exist_ok=True)
    with torch.inference_mode():
        make_rows(options)
    if options.results == RESULTS:
        found = referee_report.tables(RESULTS) | stabilise_report.tables(RESULTS)
        DOCUMENT.write_text(report.updated(DOCUMENT.read_text(encoding="utf-8"), found), encoding="utf-8")
        figures.equal_strength(table.Part(RESULTS, "referee-final"), ROOT / "docs" / "images" / "equal_strength.png")


def make_rows(options: argparse.Namespace) -> None:
    """Those that are lacking."""
    critic, comfyui = judge.load(ROOT / ".dev" / "evidence"), options.comfyui.resolve()
    load = cache(partial(comfyui_runs.load, comfyui, PRECISION))
    for part in options.parts.split(","):
        kind = referee_parts.PARTS[part].model
        path = weights("eps" if kind == "eps" else "flow")
        for seed in map(int, options.seeds.split(",")) if options.seeds else referee_parts.PARTS[part].seeds:
            start = comfyui_runs.Seed(load(kind), SAMPLES, seed, critic, kind)
            about = runs.about(SAMPLES, seed, PRECISION, path)
            referee_parts.measure(part, start, runs.Results(options.results / f"{part}-seed{seed}.json", about))


if __name__ == "__main__":
    main()
