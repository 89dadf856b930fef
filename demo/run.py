"""Run the demo workflow in a real ComfyUI server and write its pictures. Called by `python dev.py demo`."""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from devkit import base, client, comfyui, graph
from devkit.paths import DEV, Stop
from devkit.server import Server

WORKFLOW = ROOT / "demo" / "workflows" / "micrograin.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--comfyui", type=Path, required=True)
    parser.add_argument("--workflow", type=Path, default=WORKFLOW, help="another workflow saved from the frontend")
    parser.add_argument("--output", type=Path, default=DEV / "demo", help="folder for the pictures")
    args = parser.parse_args()
    start = time.monotonic()
    folder = base.make(DEV / "demo" / "base")
    print(f"Starting ComfyUI {comfyui.version(args.comfyui)} with Gimbal ...", flush=True)
    with Server(args.comfyui, folder) as server:
        known = server.get("/object_info")
        workflow = graph.to_api(json.loads(args.workflow.read_text(encoding="utf-8")), known)
        result = client.run(server.url, workflow, Progress(workflow))
        pictures = [entry for output in result.outputs for entry in result.images(output)]
        args.output.mkdir(parents=True, exist_ok=True)
        for entry in pictures:
            path = args.output / entry["filename"]
            path.write_bytes(client.image(server.url, entry))
            print(f"Wrote {path}")
        ours = tuple(f"{info['display_name']}: " for name, info in known.items() if name.startswith("Gimbal"))
        report = [line for line in server.log_lines() if line.startswith(ours)]
    if not pictures:
        raise Stop(f"{args.workflow.name} ran but saved no picture; it needs a Save Image node.")
    print("What the nodes said:", *report, sep="\n  ")
    print(f"Done in {time.monotonic() - start:.0f} s.")


class Progress:
    """One line a sampler, growing with its steps."""

    def __init__(self, workflow: client.Workflow):
        self.workflow = workflow
        self.node = ""

    def __call__(self, node: str, done: int, of: int) -> None:
        if node != self.node:
            print(f"  {self.workflow[node]['class_type']} (node {node}) ", end="", flush=True)
            self.node = node
        print("." if done < of else f". {of} steps\n", end="", flush=True)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the server is stopped, not orphaned
    try:
        main()
    except (Stop, client.WorkflowFailed) as error:
        sys.exit(f"demo: {error}")
