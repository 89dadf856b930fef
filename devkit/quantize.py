"""Write the quantized twin of a diffusion model's file. Called by `dev.py quantize`."""

from __future__ import annotations

import argparse
import re
import sys
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from devkit.paths import Stop
from devkit.quantized import formats


def main() -> None:
    known = "\n".join(f"  {name:11} {each.says}" for name, each in formats.FORMATS.items())
    parser = argparse.ArgumentParser(
        description=f"{__doc__}\n\nformats:\n{known}", formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "model", type=Path, help="a diffusion model in full precision, as Load Diffusion Model reads it"
    )
    parser.add_argument("--format", required=True, choices=formats.FORMATS, metavar="FORMAT")
    parser.add_argument("--output", type=Path, help="default: beside the model, with the format in its name")
    args = parser.parse_args()
    ending = formats.suffix(args.format)
    output = args.output or args.model.with_name(f"{args.model.stem}_{args.format.replace('gguf-', '')}{ending}")
    twin = formats.make(args.model, args.format, output)
    sizes = [path.stat().st_size / 2**20 for path in (args.model, twin.path)]
    print(f"Wrote {twin.path}: {sizes[1]:.1f} MB of {sizes[0]:.1f} MB.")
    print(f"Quantized: {len(twin.quantized)} weights, {100 * twin.share:.0f} % of all values.")
    print(*lines(twin.quantized), sep="\n")
    print(f"Kept as they were: {len(twin.kept)} others.")
    print(*lines(twin.kept), sep="\n")


def lines(names: list[str]) -> list[str]:
    """The names with `*` for their numbers, so that a block tells of all its kind."""
    kinds = Counter(re.sub(r"(?<=\.)\d+(?=\.)", "*", name) for name in names)
    return [f"  {count:4} {kind}" for kind, count in kinds.items()]


if __name__ == "__main__":
    try:
        main()
    except Stop as error:
        sys.exit(f"quantize: {error}")
