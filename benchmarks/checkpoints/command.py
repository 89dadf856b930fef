"""Paired pictures of your own checkpoints on your own ComfyUI, and what a stabiliser or a correction changes in them.

    python dev.py checkpoints --workflow "workflows/Reuse a calibration - Flux GGUF.json" --prompts prompts.txt --seeds 0,1,2,3

A workflow is a file as ComfyUI saves it or exports it for the API. Each Save Image in it is a variant, named by the
end of its filename_prefix. Prompt and seed are put in for every pair; an interrupted command goes on where it stopped.
docs/CHECKPOINTS.md says how for SDXL, SD3.5, Flux and Wan.
"""

from __future__ import annotations

import argparse
import json
import sys
import urllib.error
import urllib.request
from pathlib import Path

from devkit.paths import DEV, Stop

from . import graphs, learned, report, values
from .graphs import WorkflowFile
from .pictures import Album

FULL = "full"  # the variant that is the reference if no other is named
ABSENT = "is not among the pictures; there are"


def arguments(given: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--server", default="http://127.0.0.1:8188", help="your running ComfyUI (default %(default)s)")
    add("--workflow", action="append", required=True, metavar="[NAME=]FILE", help="may be given several times")
    add("--prompts", type=Path, required=True, help="a text file, one prompt a line")
    add("--seeds", default="0,1,2,3", help="comma-separated (default %(default)s)")
    add("--variants", default="", help="comma-separated: only these (default: all that the workflows save)")
    add("--reference", help=f"the variant the others are to be near (default {FULL!r}, if there is one)")
    add("--baseline", help="the variant the others are compared with (default: the first that is not the reference)")
    add("--output", type=Path, default=DEV / "checkpoints", help="folder for pictures and table (default %(default)s)")
    add("--clip", nargs="?", const=learned.CLIP, metavar="MODEL", help="CLIP score too, by this network or folder")
    add("--fid", action="store_true", help="FID too, to the reference's pictures or to those of --real")
    add("--real", type=Path, metavar="FOLDER", help="real pictures for FID")
    add("--timeout", type=float, default=3600, help="seconds that one queued workflow may take (default %(default)s)")
    return parser.parse_args(given)


def main(given: list[str] | None = None) -> None:
    options = arguments(given)
    prompts = [line.strip() for line in options.prompts.read_text(encoding="utf-8").splitlines() if line.strip()]
    if not prompts:
        raise Stop(f"{options.prompts} holds no prompt; write one a line.")
    found = load(options)
    names = [name for graph in found for name in graph.variants]
    reference = options.reference or (FULL if FULL in names else None)
    baseline = options.baseline or next((name for name in names if name != reference), names[0])
    for name in (reference, baseline):
        if name is not None and name not in names:
            raise Stop(f"{name} {ABSENT} {', '.join(names)}.")
    clip, fid, missing = optional(options, reference)
    album = Album(options.output, prompts, [int(seed) for seed in options.seeds.split(",")])
    album.check(found)
    album.make(options.server, found, options.timeout)
    measured = values.of(album, names, reference, clip, fid, options.real)
    about = [f"{graph.path.name}: {', '.join(graph.variants)}" for graph in found]
    written = report.text(measured, reference, baseline, about, missing)
    (options.output / "REPORT.md").write_text(written, encoding="utf-8")
    report.sheet(album, names, options.output / "sheet.png")
    print(f"\n{written}\nWrote {options.output / 'REPORT.md'} and {options.output / 'sheet.png'}.")


def load(options: argparse.Namespace) -> list[WorkflowFile]:
    try:
        with urllib.request.urlopen(f"{options.server}/object_info", timeout=60) as answer:
            known = json.load(answer)
    except (urllib.error.URLError, TimeoutError) as error:
        raise Stop(
            f"no ComfyUI answers at {options.server} ({error}); start it, or name another with --server."
        ) from error
    chosen = frozenset(name for name in options.variants.split(",") if name)
    found = []
    for text in options.workflow:
        name, _, file = text.rpartition("=")
        found.append(graphs.load(Path(file), known, name, chosen))
    names = [name for graph in found for name in graph.variants]
    if lacking := sorted(chosen - set(names)):
        raise Stop(f"{lacking[0]} {ABSENT} {', '.join(names)}.")
    if len(set(names)) < len(names):
        raise Stop(
            f"two workflows save pictures of one name ({', '.join(names)}); give one a name: --workflow NAME=FILE."
        )
    return [graph for graph in found if graph.variants]


def optional(options: argparse.Namespace, reference: str | None):
    """CLIP score, FID, and a sentence for each that was asked for and is not to be had."""
    if options.fid and options.real is None and reference is None:
        raise Stop(
            "FID needs something to compare with: name a --reference, or a folder of real pictures with --real."
        )
    clip = fid = None
    missing = []
    try:
        clip = learned.ClipScore(options.clip) if options.clip else None
    except Stop as stop:
        missing.append(str(stop))
    try:
        fid = learned.Fid() if options.fid else None
    except Stop as stop:
        missing.append(str(stop))
    for sentence in missing:
        print(f"checkpoints: {sentence}", file=sys.stderr, flush=True)
    return clip, fid, missing
