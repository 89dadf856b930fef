"""Make devkit/locks/*.txt anew: every package of the environment, pinned with its hashes, for all platforms at once."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from . import comfyui, environment
from .paths import DEV, LOCKS, PYTHON, ROOT

TORCH, TORCHVISION = "2.13.0", "0.28.0"
# The CPU build for Linux that some mirrors serve under the same version.
TORCH_CPU_HASH = "6746dbcbeb526eb61330b76b41ff1b4eb848951103a892eeb080dfa2b264667b"
# What only a CUDA build needs; pip takes it from that build's own metadata.
CUDA = re.compile(r"(nvidia-|cuda-|triton)")
# Optional in ComfyUI, and its wheel insists on one CUDA version.
LEFT_OUT = ("torchaudio",)


def make() -> None:
    environment.pip("install", "--quiet", "uv", what="uv")
    work = DEV / "lock"
    work.mkdir(parents=True, exist_ok=True)
    (work / "torch.in").write_text(f"torch=={TORCH}\n")
    requirements = (comfyui.locate(None) / "requirements.txt").read_text().splitlines()
    names = [line for line in requirements if line and not line.startswith("#") and line not in LEFT_OUT]
    pinned = {"torch": f"torch=={TORCH}", "torchvision": f"torchvision=={TORCHVISION}"}
    # requests: two of ComfyUI's modules import it without asking for it.
    (work / "comfyui.in").write_text("\n".join([pinned.get(name, name) for name in names] + ["requests"]) + "\n")
    torch, tools = LOCKS / "torch.txt", LOCKS / "tools.txt"
    _compile(work / "torch.in", torch)
    _compile(ROOT / "pyproject.toml", tools, "--extra", "dev", "-c", torch)
    _compile(work / "comfyui.in", LOCKS / "comfyui.txt", "-c", torch, "-c", tools)


def _compile(source: Path, lock: Path, *options: str | Path) -> None:
    command = [
        PYTHON,
        "-m",
        "uv",
        "pip",
        "compile",
        "--universal",
        "--generate-hashes",
        "--no-annotate",
        "--no-header",
    ]
    subprocess.run([*command, "--quiet", "--python-version", "3.11", *options, "-o", lock, source], check=True)
    entries = re.split(r"\n(?=\S)", lock.read_text().strip())
    kept = [entry for entry in entries if not CUDA.match(entry)]
    kept = [_with_cpu_build(entry) if entry.startswith("torch==") else entry for entry in kept]
    lock.write_text("\n".join(kept) + "\n")


def _with_cpu_build(entry: str) -> str:
    if TORCH_CPU_HASH in entry:  # uv keeps the hashes of the lock file that it renews
        return entry
    return f"{entry} \\\n    --hash=sha256:{TORCH_CPU_HASH}"
