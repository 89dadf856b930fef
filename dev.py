"""The one command for working on Gimbal. Python 3.11+, nothing else needed; everything it makes is under .dev/.

python dev.py demo       pictures from a real ComfyUI with a Gimbal node in the graph
python dev.py test       all tests (--quick: without ComfyUI; --comfyui PATH: on another ComfyUI; -n 0: one process)
python dev.py comfyui    a ComfyUI with the pack and the demo model, to experiment in
python dev.py bench      benchmarks of speed, as ratios within one run; `bench evidence` and `bench referee` measure what pictures become
python dev.py checkpoints  paired pictures of your own models on your own ComfyUI (docs/CHECKPOINTS.md)
python dev.py train      train the demo model anew
python dev.py workflows  write workflows/ anew from devkit/recipes/ (--thumbnails: draw their pictures)
python dev.py quantize   write the quantized twin of a model's file (--help: the formats)
python dev.py lock       renew the pinned environment
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from devkit import comfyui, environment, lock, testing
from devkit.paths import ROOT, Stop

# Benchmarks of what pictures become: minutes long, on ComfyUI.
EVIDENCE = {"evidence": "evidence", "depth": "evidence/depth_command.py", "referee": "evidence/referee_command.py"}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, function: object, text: str, host: bool = True, **options) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text, **options)
        sub.set_defaults(function=function)
        if host:
            sub.add_argument("--comfyui", type=Path, metavar="PATH", help="use this ComfyUI instead of the pinned one")
        return sub

    command("demo", demo, "Run the bundled demo workflow in a real ComfyUI and write its pictures.")
    text = (
        "Run the tests. Further arguments are passed to pytest; without any, the tests marked numerics run a second time, on "
        "the kernels of an older CPU."
    )
    test_parser = command("test", test, text, allow_abbrev=False)
    test_parser.add_argument("--quick", action="store_true", help="only the tests that need no ComfyUI")
    test_parser.add_argument(
        "-n", dest="workers", metavar="N", help="number of processes (default: one per core, at most 4)"
    )
    command("comfyui", play, "Start ComfyUI with the pack and the demo model. Further arguments are passed to it.")
    command("bench", bench, "Run the benchmarks named, or all those of speed.")
    # Their own --help says what they take.
    command("checkpoints", checkpoints, "Paired pictures of your own checkpoints.", host=False, add_help=False)
    command("quantize", quantize, "Write the quantized twin of a model's file.", host=False, add_help=False)
    command("train", train, "Train the demo model. Further arguments are passed to demo/train.py.")
    command("workflows", workflows, "Write workflows/ anew from devkit/recipes/.")
    command("lock", relock, "Renew the pinned environment in devkit/locks.", host=False)
    args, rest = parser.parse_known_args()
    # Keep the repository root off sys.path: its `nodes` would shadow ComfyUI's module of that name.
    os.environ["PYTHONSAFEPATH"] = "1"
    try:
        return args.function(args, rest)
    except Stop as stop:
        print(f"dev.py: {stop}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ndev.py: stopped. Run the same command again to go on.", file=sys.stderr)
        return 130


def demo(args: argparse.Namespace, rest: list[str]) -> int:
    return _script("demo/run.py", args, rest)


def play(args: argparse.Namespace, rest: list[str]) -> int:
    return _script("demo/play.py", args, rest)


def train(args: argparse.Namespace, rest: list[str]) -> int:
    return _script("demo/train.py", args, rest)


def workflows(args: argparse.Namespace, rest: list[str]) -> int:
    return _script("devkit/write_workflows.py", args, rest)


def test(args: argparse.Namespace, rest: list[str]) -> int:
    if args.quick:
        environment.ensure(environment.QUICK)
        return testing.run(["--ignore=tests/host"], args.workers, rest)
    return testing.run([f"--comfyui={_host(args)}"], args.workers, rest, twice=not rest)


def bench(args: argparse.Namespace, rest: list[str]) -> int:
    environment.ensure(environment.QUICK)
    speeds = sorted(path.stem for path in (ROOT / "benchmarks").glob("[!_]*.py"))
    known = sorted([*speeds, *EVIDENCE])
    chosen = [name for name in rest if not name.startswith("-")] or speeds
    for name in chosen:
        if name not in known:
            raise Stop(f"there is no benchmark {name!r}; there are {', '.join(known)}.")
        host = ["--comfyui", _host(args)] if name in EVIDENCE else []
        command = [
            ROOT / "benchmarks" / EVIDENCE.get(name, f"{name}.py"),
            *host,
            *[r for r in rest if r.startswith("-")],
        ]
        # Benchmarks import what lies beside them, which PYTHONSAFEPATH forbids.
        code = environment.run(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT / "benchmarks")})
        if code:
            return code
    return 0


def checkpoints(args: argparse.Namespace, rest: list[str]) -> int:
    environment.ensure(environment.QUICK)
    return environment.run([ROOT / "benchmarks" / "checkpoints", *rest])


def quantize(args: argparse.Namespace, rest: list[str]) -> int:
    environment.ensure(environment.QUICK)
    return environment.run([ROOT / "devkit" / "quantize.py", *rest])


def relock(args: argparse.Namespace, rest: list[str]) -> int:
    environment.ensure(())
    lock.make()
    return 0


def _host(args: argparse.Namespace) -> Path:
    if args.comfyui is not None:
        comfyui.locate(args.comfyui)  # a wrong path is said before anything is installed
    environment.ensure(environment.FULL)
    return comfyui.locate(args.comfyui)


def _script(script: str, args: argparse.Namespace, rest: list[str]) -> int:
    return environment.run([ROOT / script, "--comfyui", _host(args), *rest], cwd=ROOT)


if __name__ == "__main__":
    sys.exit(main())
