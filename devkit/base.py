"""An isolated ComfyUI base directory: the pack as users receive it, the demo's models, and nothing else."""

from __future__ import annotations

import shutil
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath

from .paths import ROOT

# Never part of anything, whatever .comfyignore says.
ALWAYS_IGNORED = (".git", ".dev*", "__pycache__", "*.pyc", "*.egg-info", ".*_cache", ".hypothesis", "build", "dist")


def published_files() -> list[PurePosixPath]:
    """The files of the published archive, relative to the root: everything but what .comfyignore names.

    .comfyignore keeps to plain names, `*` and a leading `/`, so that this reads it as git does.
    """
    lines = (ROOT / ".comfyignore").read_text().splitlines()
    patterns = [line.strip().rstrip("/") for line in lines if line.strip() and not line.startswith("#")]
    found: list[PurePosixPath] = []

    def walk(folder: Path) -> None:
        for path in sorted(folder.iterdir()):
            relative = PurePosixPath(path.relative_to(ROOT).as_posix())
            if any(fnmatch(path.name, pattern) for pattern in ALWAYS_IGNORED) or _ignored(relative, patterns):
                continue
            if path.is_dir():
                walk(path)
            else:
                found.append(relative)

    walk(ROOT)
    return found


def _ignored(path: PurePosixPath, patterns: list[str]) -> bool:
    for pattern in patterns:
        if pattern.startswith("/") or "/" in pattern:
            if fnmatch(str(path), pattern.lstrip("/")):
                return True
        elif fnmatch(path.name, pattern):
            return True
    return False


def make(base: Path, demo: bool = True) -> Path:
    """(Re)install the pack, and the demo's models, into `base`; what a person keeps there stays."""
    for folder in ("models/diffusion_models", "custom_nodes", "input", "output", "temp", "user"):
        (base / folder).mkdir(parents=True, exist_ok=True)
    settings = base / "user" / "default" / "comfy.settings.json"
    if not settings.exists():
        settings.parent.mkdir(parents=True, exist_ok=True)
        settings.write_text('{"Comfy.TutorialCompleted": true}\n')  # no template dialog over the first start
    pack = base / "custom_nodes" / "gimbal"
    shutil.rmtree(pack, ignore_errors=True)
    for file in published_files():
        (pack / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / file, pack / file)
    if demo:
        for model in (ROOT / "demo" / "models").glob("*.safetensors"):
            shutil.copy2(model, base / "models" / "diffusion_models" / model.name)
    return base
