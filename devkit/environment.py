"""The pinned environment: a venv under `.dev/`, filled from hash-checked lock files, made once and reused.

Groups are installed in order; a stamp beside the venv names the exact lock file each was installed from, so an
interrupted set-up is finished by running it again and a changed lock file is installed over the old one.
"""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Sequence
from pathlib import Path

from .paths import DEV, LOCKS, PYTHON, VENV, Stop

QUICK = ("torch", "tools")
FULL = ("torch", "tools", "comfyui")

# torchvision's wheel may be built for another torch (CPU against CUDA); then its operators are missing and it does
# not import. ComfyUI imports it but the demo never calls it: declaring the operators is enough. Done when torchvision
# is first imported, so that other programs in the venv start as fast as before.
TORCHVISION_SHIM = """\
import sys
from importlib.abc import MetaPathFinder


class DeclareOperators(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name == "torchvision":
            sys.meta_path.remove(self)
            import torch

            for operator in ("nms", "qnms"):
                signature = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
                torch.library.define(f"torchvision::{operator}", signature)
        return None


sys.meta_path.insert(0, DeclareOperators())
"""


def ensure(groups: Sequence[str]) -> None:
    """Make the venv hold these groups; returns at once when it does."""
    if sys.version_info < (3, 11):
        raise Stop(f"dev.py needs Python 3.11 or newer, this is {sys.version.split()[0]}; run it with a newer one.")
    if not _stamp("venv").exists():
        _create()
        _stamp("venv").write_text(sys.version)
    for group in groups:
        wanted = hashlib.sha256((LOCKS / f"{group}.txt").read_bytes()).hexdigest()
        if not _stamp(group).exists() or _stamp(group).read_text() != wanted:
            print(f"dev.py: installing the {group} packages into {VENV} ...", flush=True)
            _install(group)
            _stamp(group).write_text(wanted)
    if "comfyui" in groups:
        _make_torchaudio_importable()


def run(arguments: Sequence[str | Path], **options: object) -> int:
    """Run the venv's Python; its exit code. Interrupting or terminating dev.py lets the program clean up first."""
    process = subprocess.Popen([PYTHON, *arguments], **options)
    signal.signal(signal.SIGTERM, lambda *_: process.terminate())
    while True:
        try:
            return process.wait()
        except KeyboardInterrupt:
            continue  # Ctrl+C reached the program too


def pip(*arguments: str | Path, what: str) -> None:
    """pip inside the venv; a failure becomes one sentence that names what was being fetched."""
    command = ["-m", "pip", "--disable-pip-version-check", *map(str, arguments)]
    done = subprocess.run([PYTHON, *command], capture_output=True, text=True)
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or done.stderr.splitlines()
        reason = errors[0] if errors else "pip said nothing"
        raise Stop(f"Could not get {what}: {reason} Check the network and run the command again; it will go on here.")


def _stamp(group: str) -> Path:
    return VENV / f".gimbal-{group}"


def _create() -> None:
    print(f"dev.py: making an environment in {VENV} ...", flush=True)
    DEV.mkdir(parents=True, exist_ok=True)
    try:
        venv.create(VENV, with_pip=True, clear=True)
    except subprocess.CalledProcessError as error:
        raise Stop(
            "Python could not make a virtual environment with pip in it; "
            "on Debian and Ubuntu install python3-venv, then run the command again."
        ) from error


def _install(group: str) -> None:
    if group == "torch":
        _install_torch()
    pip("install", "--no-deps", "--require-hashes", "-r", LOCKS / f"{group}.txt", what=f"the {group} packages")
    if group == "torch":
        # A CUDA build pins its own runtime packages in its metadata; any other build asks for nothing more here.
        pip("install", f"torch=={_locked_version('torch')}", what="torch's runtime packages")
    if group == "comfyui":
        _make_torchvision_importable()


def _install_torch() -> None:
    """The build this machine's pip prefers (a CPU build, if an index it knows has one), checked against the lock.

    pip's own hash mode would always take the package index's build: on Linux the CUDA one, several GB.
    GIMBAL_TORCH_INDEX names another index, whose files are not in the lock and not checked.
    """
    name, index = f"torch=={_locked_version('torch')}", os.environ.get("GIMBAL_TORCH_INDEX")
    if index:
        pip("install", "--no-deps", f"--index-url={index}", name, what=f"torch from {index}")
        return
    folder = DEV / "downloads" / "torch"
    pip("download", "--no-deps", "-d", folder, name, what="torch")
    for wheel in folder.glob("*.whl"):
        if hashlib.sha256(wheel.read_bytes()).hexdigest() not in (LOCKS / "torch.txt").read_text():
            wheel.unlink()
            raise Stop(f"{wheel.name} is not one of the files in devkit/locks/torch.txt; it was deleted, try again.")
        pip("install", "--no-deps", wheel, what="torch")
        wheel.unlink()


def _locked_version(package: str) -> str:
    for line in (LOCKS / "torch.txt").read_text().splitlines():
        if line.startswith(f"{package}=="):
            return line.split("==")[1].split()[0]
    raise Stop(f"devkit/locks/torch.txt does not name {package}; restore it from git.")


def _make_torchvision_importable() -> None:
    probe = subprocess.run([PYTHON, "-c", "import torchvision"], capture_output=True, text=True)
    if probe.returncode == 0:
        return
    if "torchvision::" not in probe.stderr:
        raise Stop(f"torchvision does not import: {probe.stderr.strip().splitlines()[-1]}")
    _run_at_start("gimbal_torchvision_operators", TORCHVISION_SHIM)


def _make_torchaudio_importable() -> None:
    """Every time: a ComfyUI given by --comfyui may want it, and its requirements may bring or break it afterwards."""
    _run_at_start("gimbal_without_torchaudio", Path(__file__).with_name("without_torchaudio.py").read_text())


def _run_at_start(name: str, code: str) -> None:
    """Have every Python of the venv run this code before anything else."""
    paths = {"base": str(VENV), "platbase": str(VENV)}
    packages = Path(sysconfig.get_path("purelib", "venv", paths))
    for file, text in ((f"{name}.py", code), (f"{name}.pth", f"import {name}\n")):
        if not (packages / file).exists() or (packages / file).read_text() != text:
            (packages / file).write_text(text)
