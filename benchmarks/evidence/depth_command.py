"""How rounding errors grow over 3 blocks and over 9, and what the corrections leave of them: rows, tables, a figure.

    python dev.py bench depth [--model=FILE] [--data=FOLDER] [--seeds=0,1,2] [--subject=pictures]

Rows that are stored are not made again. The picture model is what `demo/train_pictures.py` makes.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import _gimbal
import torch

from evidence import depth, depth_models, depth_report, report, runs

ROOT = _gimbal.ROOT
RESULTS = ROOT / "benchmarks" / "evidence" / "results"
DOCUMENT = ROOT / "docs" / "DEPTH.md"
SEEDS = "0,1,2,3"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--comfyui", type=Path, required=True, help="a ComfyUI checkout")
    parser.add_argument("--model", type=Path, default=depth_models.PICTURES, help="the picture model")
    parser.add_argument("--data", type=Path, default=depth_models.PACKAGES, help="where its packages are, or go")
    parser.add_argument("--seeds", default=SEEDS, help="comma-separated")
    parser.add_argument("--subject", choices=depth_report.SUBJECTS, help="make this one's rows only")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the rows")
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.results.mkdir(parents=True, exist_ok=True)
    with torch.inference_mode(), tempfile.TemporaryDirectory() as folder:
        for name in [options.subject] if options.subject else depth_report.SUBJECTS:
            seeds = list(map(int, options.seeds.split(",")))
            if not all(complete(options.results, name, seed) for seed in seeds):
                measure(options, name, seeds, Path(folder))
    if options.results == RESULTS and not options.subject:
        DOCUMENT.write_text(
            report.updated(DOCUMENT.read_text(encoding="utf-8"), depth_report.tables(RESULTS)), encoding="utf-8"
        )
        depth_report.figure(RESULTS, ROOT / "docs" / "images" / "depth.png")


def complete(folder: Path, name: str, seed: int) -> bool:
    """Whether all rows of a subject and seed are stored, so that its model is not needed."""
    stored = {each["about"]["seed"]: each["runs"] for each in runs.load(folder, depth_report.part(name))}
    return all(depth.name(*row) in stored.get(seed, ()) for row in depth.rows())


def measure(options: argparse.Namespace, name: str, seeds: list[int], folder: Path) -> None:
    if name == "letters":
        subject = depth_models.letters(options.comfyui)
    else:
        subject = depth_models.pictures(options.comfyui, options.model, options.data)
    bench = depth.Bench(subject, folder)
    for seed in seeds:
        about = runs.about(len(subject.asked), seed, "float32", subject.file) | subject.about
        bench.measure(runs.Results(options.results / f"{depth_report.part(name)}-seed{seed}.json", about))


if __name__ == "__main__":
    main()
