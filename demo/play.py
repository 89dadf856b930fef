"""Start ComfyUI with the pack and the demo model for a person. Called by `python dev.py comfyui`."""

from __future__ import annotations

import argparse
import shutil
import signal
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from devkit import base
from devkit.paths import DEV, Stop
from devkit.server import Server, check_port


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--comfyui", type=Path, required=True)
    parser.add_argument("--port", type=int, default=8188)
    parser.add_argument("--gpu", action="store_true", help="let ComfyUI use the GPU (default: CPU, as the tests do)")
    args, rest = parser.parse_known_args()
    check_port(args.port)  # before touching the base directory, which a running server may be using
    folder = base.make(DEV / "base")
    saved = folder / "user" / "default" / "workflows"
    saved.mkdir(parents=True, exist_ok=True)
    for workflow in (ROOT / "demo" / "workflows").glob("*.json"):
        shutil.copy2(workflow, saved / f"gimbal demo {workflow.name}")
    with Server(args.comfyui, folder, args.port, [*([] if args.gpu else ["--cpu"]), *rest]) as server:
        print(f"ComfyUI is at {server.url}; the demo's workflows are in its sidebar under Workflows.")
        print(f"Its log is {server.log}. Ctrl+C stops it.", flush=True)
        while server.process.poll() is None:
            time.sleep(0.5)
    raise Stop(f"ComfyUI ended by itself; see {server.log}.")


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the server is stopped, not orphaned
    try:
        main()
    except Stop as stop:
        sys.exit(f"comfyui: {stop}")
    except KeyboardInterrupt:
        print("\nStopped.")
