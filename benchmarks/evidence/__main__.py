"""What SAMG, QSilk, Q-Drift and moment matching do to the demo models' pictures, measured over paired seeds: numbers, tables, figures, report.

    python dev.py bench evidence [--full] [--samples=N] [--jobs=N] [--part=samg]

Without --full: 24 samples for each seed and row (quantized models: 20, posters 10, and the main rows only), results and
report under .dev/evidence/, 14 minutes on 2 cores from an empty clone. With it: 160 samples (24, 10), results in
benchmarks/evidence/results/ and the report in docs/RESULTS.md, both in git. An interrupted command goes on where it
stopped; what is already there is not made again, so that on a fresh clone --full only draws and writes the report.
"""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
from functools import cache, partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import _gimbal
import torch

from evidence import (
    figures,
    files,
    halves,
    halves_sheet,
    judge,
    model,
    paired_sampler,
    posters,
    posters_report,
    precision,
    precision_report,
    qsilk,
    quantization,
    quantization_report,
    reference,
    report,
    runs,
    samg,
    sheets,
    subjects,
    subsets,
    table,
)

ROOT = _gimbal.ROOT
KEPT = ROOT / ".dev" / "evidence"
GIT = ROOT / "benchmarks" / "evidence" / "results"  # in git
GUIDED = {"samg": samg.rows, "qsilk": qsilk.rows, "float32": reference.rows}
QUANTIZED = {  # part -> its rows, and the model's kind
    **{f"{part}-{kind}": (rows, kind) for part, rows in quantization.PARTS.items() for kind in subjects.SETTINGS},
    posters.KIND: (posters.rows, posters.KIND),
    **{f"precision-{kind}": (precision.rows, kind) for kind in precision_report.KINDS},
    subsets.PART: (subsets.rows, subsets.KIND),
    files.PART: (files.rows, files.KIND),
    halves.PART: (halves.rows, posters.KIND),
}
SEEDS = 5
MORE_SEEDS = 7  # of the main rows of quantized models, with --full
FEWER_SEEDS = {files.PART: files.SEEDS, subsets.PART: subsets.SEEDS}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--comfyui", type=Path, required=True, help="a ComfyUI checkout, for its network classes")
    add("--full", action="store_true", help="more samples and rows; results and report where git keeps them")
    add("--samples", type=sample_count, help="of every row, instead of the numbers above; nothing goes into git")
    add("--seeds", type=seed_list, default=set(range(MORE_SEEDS)), help="comma-separated, of those a part has")
    add("--part", choices=report.PARTS, help="make the runs of this part only")
    add("--jobs", type=int, default=2, help="processes, of one thread each")
    add("--precision", choices=("auto", "float32", "bfloat16"), default="auto")
    add("--share", default="0/1", help=argparse.SUPPRESS)  # a process's share of the runs
    add("--results", type=Path, help="folder of the numbers")
    add("--no-report", action="store_true", help="make the runs only")
    return parser.parse_args()


def sample_count(text: str) -> int:
    count = int(text)
    if count < 2:
        raise argparse.ArgumentTypeError(f"{count} samples have no covariance; ask for 2 or more")
    return count


def seed_list(text: str) -> set[int]:
    seeds = {int(seed) for seed in text.split(",")}
    if unknown := seeds - {*range(MORE_SEEDS)}:
        raise argparse.ArgumentTypeError(f"no part has seed {min(unknown)}; there are 0 to {MORE_SEEDS - 1}")
    return seeds


def main() -> int:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that its processes end with it
    typed = sys.argv[1:]  # ComfyUI reads sys.argv too, and is given another
    options = arguments()
    torch.set_num_threads(1)
    folder = options.results or results_folder(options)
    folder.mkdir(parents=True, exist_ok=True)
    if options.jobs > 1:
        judge.load(KEPT)  # made once, before several processes look for it
        if failed := in_processes(typed, options.jobs):
            return failed
    if options.precision == "auto":
        options.precision = runs.stored_precision(folder) or fastest_precision()
    network = model.Network(options.comfyui, options.precision)
    with torch.inference_mode():
        for part, seed in own_share(options):
            measure(options, network, part, seed, folder)
        if not (options.no_report or options.part):
            write_report(network, folder, options)
    return 0


def results_folder(options: argparse.Namespace) -> Path:
    """One for each choice of samples and rows, as a file holds runs of one number of samples only."""
    if options.samples is None:
        return GIT if options.full else KEPT / "results-short"
    return KEPT / f"results-{'full' if options.full else 'short'}-{options.samples}"


def own_share(options: argparse.Namespace) -> list[tuple[str, int]]:
    """Parts and seeds, of those asked for, that this process makes."""
    parts = [options.part] if options.part else report.PARTS
    whole = [(part, seed) for part in parts for seed in range(seeds_of(part, options.full)) if seed in options.seeds]
    job, jobs = map(int, options.share.split("/"))
    return whole[job::jobs]


def seeds_of(part: str, full: bool) -> int:
    """How many seeds a part has."""
    if part == "float32":
        return reference.PRECISION_SEEDS
    if part not in QUANTIZED:
        return SEEDS
    rows, kind = QUANTIZED[part]
    if not full:
        return SEEDS if any(row.quick for row in rows(kind)) else 0
    return MORE_SEEDS if rows in (quantization.rows, precision.rows) else FEWER_SEEDS.get(part, SEEDS)


def in_processes(typed: list[str], jobs: int) -> int:
    """The runs in processes of their own, which take turns; the first exit code that is not 0."""
    commands = [
        [sys.executable, __file__, *typed, f"--share={job}/{jobs}", "--jobs=1", "--no-report"] for job in range(jobs)
    ]
    running = [subprocess.Popen(command) for command in commands]
    try:
        return next((code for code in [process.wait() for process in running] if code), 0)
    except KeyboardInterrupt:
        return 130
    finally:
        for process in running:
            process.terminate()


def fastest_precision() -> str:
    able = torch.cpu.get_capabilities()
    return "bfloat16" if able.get("avx512_bf16") or able.get("amx_bf16") else "float32"


def measure(options: argparse.Namespace, network: model.Network, part: str, seed: int, folder: Path) -> None:
    """What is lacking of one part and seed."""
    critic, samples, heading = judge.load(KEPT), samples_of(part, options), f"{part}, seed {seed}"
    rows, kind = QUANTIZED.get(part, (None, "flow"))
    dtype = "float32" if part in ("float32", files.PART) else options.precision
    about = runs.about(samples, seed, dtype, subjects.weights(kind))
    results = runs.Results(folder / f"{part}-seed{seed}.json", about)
    if part in QUANTIZED:
        critic = posters.CellJudge(critic) if kind == posters.KIND else critic
        bench = quantization.Bench(load_models(kind, options.comfyui, options.precision), samples, seed, critic)
        measured = partial(halves.measures, bench) if part == halves.PART else bench.measures
        runs.make(heading, [row for row in rows(kind) if options.full or row.quick], results, measured)
        if options.full and rows is not precision.rows:
            posters.measure_spread(part, bench, results)
    elif part == "real":
        reference.measure_real(samples, seed, critic, results)
    elif part != "float32" or options.precision != "float32":
        network = network.in_float32() if part == "float32" else network
        start = model.GuidedSampler(network, samples, seed)
        runs.make(heading, GUIDED[part](), results, lambda row: runs.guided(row, start, critic))


def samples_of(part: str, options: argparse.Namespace) -> int:
    if options.samples:
        return options.samples
    if part in (posters.KIND, halves.PART):
        return 10  # each of many letters: every class once
    if part in QUANTIZED:  # more rows, differences within pairs
        return 24 if options.full else 20
    return 160 if options.full else 24


@cache
def load_models(kind: str, comfyui: Path, precision: str) -> paired_sampler.Models:
    """Every seed's rows share a model and its quantized forms."""
    return paired_sampler.Models(subjects.load(kind, comfyui, precision))


def write_report(network: model.Network, folder: Path, options: argparse.Namespace) -> None:
    tables = report.tables(folder)
    if options.full and folder.resolve() == GIT:
        path = ROOT / "docs" / "RESULTS.md"
        text = report.updated(path.read_text(encoding="utf-8"), tables)
    else:
        path = folder / "RESULTS.md"
        text = report.plain(tables, f"python dev.py bench evidence, {samples_of('samg', options)} samples")
    path.write_text(text, encoding="utf-8")
    print(f"evidence: {path}", flush=True)
    images = path.parent / "images"
    images.mkdir(exist_ok=True)
    draw(network, {name: table.Part(folder, name) for name in report.PARTS}, images, options)


def draw(network: model.Network, parts: dict[str, table.Part], images: Path, options: argparse.Namespace) -> None:
    """The figures that docs/RESULTS.md shows."""
    figures.frontier(parts["samg"], images / "samg_frontier.png")
    figures.corrections(quantization_report.Quantized(parts), images / "quantized_corrections.png")
    for guidance in qsilk.SHEETS:
        sheets.guided(network, samples_of("qsilk", options), guidance, images / f"qsilk_guidance_{guidance:g}.png")
    for kind in subjects.SETTINGS:
        sheets.quantized(load_models(kind, options.comfyui, options.precision), images / f"quantized_{kind}.png")
    if posters_report.has_largest(parts[posters.KIND]):
        sheets.larger(load_models(posters.KIND, options.comfyui, options.precision), images / "posters.png")
    if parts[halves.PART].names:
        halves_sheet.draw(load_models(posters.KIND, options.comfyui, options.precision), images / "halves.jpg")


if __name__ == "__main__":
    sys.exit(main())
