"""python -m gimbal.calibration describe FILE... | merge FILE... --output OUT: look at statistics files, join them."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from . import report
from .statistics import QDriftStatistics
from .text import printable


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0, or 1 after an error, which is one line on stderr."""
    options = _parser().parse_args(arguments)
    command: Callable[[argparse.Namespace], int] = options.run
    return command(options)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m gimbal.calibration", description="Q-Drift statistics files.")
    commands = parser.add_subparsers(required=True, metavar="describe | merge")
    describe = commands.add_parser("describe", help="show what files hold and what to expect of them")
    describe.add_argument("files", nargs="+", type=Path, metavar="FILE")
    describe.set_defaults(run=_describe)
    merge = commands.add_parser("merge", help="join calibrations of one setting, run with different seeds or prompts")
    merge.add_argument("files", nargs="+", type=Path, metavar="FILE")
    merge.add_argument("--output", required=True, type=Path, metavar="OUT", help="the file to write")
    merge.add_argument("--force", action="store_true", help="replace OUT if it exists")
    merge.set_defaults(run=_merge)
    return parser


def _describe(options: argparse.Namespace) -> int:
    status = 0
    for number, path in enumerate(options.files):
        try:
            text = report.describe(QDriftStatistics.load(path))
        except (ValueError, OSError) as error:
            status = _failed(error)
            continue
        _write(("\n" if number else "") + f"{printable(path, None)}\n{text}")
    return status


def _merge(options: argparse.Namespace) -> int:
    output = options.output
    try:
        if os.path.lexists(output) and not options.force:
            raise ValueError(f"{printable(output, None)} exists; choose another name, or pass --force to replace it.")
        if os.path.lexists(output) and not output.is_file():
            raise ValueError(f"{printable(output, None)} is no regular file and is not replaced; choose another name.")
        if len(options.files) < 2:
            raise ValueError(f"{printable(options.files[0], None)} is the only file; name two or more to merge.")
        parts = [QDriftStatistics.load(path) for path in options.files]
        merged = QDriftStatistics.merge(parts)
        merged.save(output, replace=options.force)
    except FileExistsError:
        return _failed(ValueError(f"{printable(output, None)} has been written meanwhile; choose another name."))
    except (ValueError, OSError) as error:
        return _failed(error)
    dropped = any(part.state_sigma is not None for part in parts)
    note = " Maps for moment matching cannot be merged and were left out." if dropped else ""
    _write(f"{printable(output, None)}: {merged.provenance.runs} runs from {len(parts)} files.{note}\n")
    return 0


def _failed(error: Exception) -> int:
    sys.stderr.write(f"error: {printable(' '.join(str(error).split()), None)}\n")
    return 1


def _write(text: str) -> None:
    encoding = sys.stdout.encoding or "utf-8"  # a Windows console may know few letters
    sys.stdout.write(text.encode(encoding, "backslashreplace").decode(encoding))


if __name__ == "__main__":
    sys.exit(main())
