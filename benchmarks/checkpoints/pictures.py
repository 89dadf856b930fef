"""Paired pictures, made on a ComfyUI server and kept in a folder; what is there is not made again."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from devkit import client
from devkit.paths import Stop

from .graphs import WorkflowFile

RECORD = "run.json"


@dataclass(frozen=True)
class Album:
    """A folder with one picture or more for each variant, prompt and seed."""

    folder: Path
    prompts: Sequence[str]
    seeds: Sequence[int]

    def check(self, graphs: Sequence[WorkflowFile]) -> None:
        """Stop if the folder holds pictures of other workflows or prompts; more prompts, seeds, variants may be added."""
        self.folder.mkdir(parents=True, exist_ok=True)
        record = self.folder / RECORD
        old = json.loads(record.read_text(encoding="utf-8")) if record.exists() else {"prompts": [], "workflows": {}}
        now = {name: _digest(graph, name) for graph in graphs for name in graph.variants}
        if list(self.prompts[: len(old["prompts"])]) != old["prompts"]:
            raise Stop(f"{self.folder} holds pictures of other prompts; add new prompts at the end, or use --output.")
        changed = [name for name, digest in now.items() if old["workflows"].get(name, digest) != digest]
        if changed:
            raise Stop(
                f"{self.folder} holds pictures of {changed[0]!r} from another workflow; delete {self.folder / changed[0]} "
                f"and its line in {RECORD}, or use --output."
            )
        kept = {"prompts": list(self.prompts), "workflows": {**old["workflows"], **now}}
        record.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")

    def make(self, url: str, graphs: Sequence[WorkflowFile], timeout: float) -> None:
        """Workflow by workflow, so that each one's models are loaded once."""
        for graph in graphs:
            for i, prompt in enumerate(self.prompts):
                for seed in self.seeds:
                    if all(self.paths(name, i, seed) for name in graph.variants):
                        continue
                    print(f"{graph.path.name}: prompt {i + 1} of {len(self.prompts)}, seed {seed}", flush=True)
                    result = client.run(url, graph.filled(prompt, seed), timeout=timeout)
                    for name, node in graph.variants.items():
                        entries = result.images(node)
                        if not entries:
                            raise Stop(f"{graph.path}: node {node} ({name}) gave no picture.")
                        self._keep(name, i, seed, [client.image(url, entry) for entry in entries])

    def _keep(self, name: str, prompt: int, seed: int, pictures: list[bytes]) -> None:
        (self.folder / name).mkdir(exist_ok=True)
        # The first picture comes last: where it is, the others are.
        for i, content in reversed(list(enumerate(pictures))):
            path = self._path(name, prompt, seed, i)
            partial = path.with_suffix(".partial")
            partial.write_bytes(content)
            partial.replace(path)

    def paths(self, name: str, prompt: int, seed: int) -> list[Path]:
        """() if they are not there, or not all of them."""
        first = self._path(name, prompt, seed, 0)
        return sorted(first.parent.glob(f"{first.stem[:-3]}*.png")) if first.exists() else []

    def _path(self, name: str, prompt: int, seed: int, i: int) -> Path:
        return self.folder / name / f"{prompt:04d}-{seed}-{i:03d}.png"

    def pictures(self, name: str, prompt: int, seed: int) -> Tensor:
        """(N, 3, H, W) in [0, 1]: the pictures of a batch, or the frames of a video."""
        return torch.stack([read(path) for path in self.paths(name, prompt, seed)])


def read(path: Path) -> Tensor:
    """(3, H, W) in [0, 1]."""
    with Image.open(io.BytesIO(path.read_bytes())) as image:
        return torch.from_numpy(np.array(image.convert("RGB"))).movedim(-1, 0).float() / 255


def _digest(graph: WorkflowFile, name: str) -> str:
    """Of the workflow with a fixed prompt and seed: those are not its own."""
    text = json.dumps([graph.filled("", 0), graph.variants[name]], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
