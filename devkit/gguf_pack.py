"""The GGUF loader pack that the tests load GGUF files with: city96/ComfyUI-GGUF, Apache-2.0, at one commit. Never committed.

It is on no package index. It comes from GitHub, or from where GIMBAL_GGUF says: a folder that holds the pack (any
version, taken as it is), or a git repository that holds the commit (a work tree or a bare one).
"""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import subprocess
import tarfile
import urllib.error
import urllib.request
import zipfile
from pathlib import Path, PurePosixPath

from .paths import DEV, Stop

COMMIT = "795e45156ece99afbc3efef911e63fcb46e6a20d"
URL = f"https://codeload.github.com/city96/ComfyUI-GGUF/zip/{COMMIT}"
# Of the files' names and contents, not of the archive: GitHub packs an archive anew and its bytes may change.
SHA256 = "b83513683404f029424ec8252e10c0b567bc29a8c69b799c7310105387180c50"
NAME = "ComfyUI-GGUF"
HOME = DEV / "gguf" / COMMIT[:12] / NAME
SECONDS = 30

Files = dict[str, bytes]


def locate() -> Path:
    """The pack's folder, fetched on first use. Stop says why it cannot be had."""
    given = os.environ.get("GIMBAL_GGUF")
    if given and (Path(given) / "nodes.py").is_file():
        return Path(given).resolve()
    if HOME.exists():
        return HOME
    return _keep(_from_git(Path(given)) if given else _from_github())


def install(custom_nodes: Path) -> Path:
    """A copy of the pack among a ComfyUI's custom nodes."""
    target = custom_nodes / NAME
    shutil.copytree(locate(), target, ignore=shutil.ignore_patterns("__pycache__", ".git"), dirs_exist_ok=True)
    return target


def digest(files: Files) -> str:
    state = hashlib.sha256()
    for name in sorted(files):
        state.update(f"{name} {hashlib.sha256(files[name]).hexdigest()}\n".encode())
    return state.hexdigest()


def _keep(files: Files) -> Path:
    found = digest(files)
    if found != SHA256:
        raise Stop(f"the GGUF pack at commit {COMMIT[:12]} is not the one expected (sha256 {found}); it was not kept.")
    partial = HOME.with_name(f"{NAME}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    for name, content in files.items():
        path = partial / PurePosixPath(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    partial.rename(HOME)
    return HOME


def _from_github() -> Files:
    print(f"devkit: fetching {NAME} ...", flush=True)
    try:
        with urllib.request.urlopen(URL, timeout=SECONDS) as answer:
            content = answer.read()
    except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
        raise Stop(
            f"{NAME} comes from GitHub, which does not answer here ({error}); name a folder that holds it, or a git "
            "repository of it, in the environment variable GIMBAL_GGUF."
        ) from error
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        names = [name for name in archive.namelist() if not name.endswith("/")]
        return {name.split("/", 1)[1]: archive.read(name) for name in names}


def _from_git(repository: Path) -> Files:
    command = ["git", "-C", str(repository), "archive", "--format=tar", COMMIT]
    done = subprocess.run(command, capture_output=True)
    if done.returncode:
        raise Stop(
            f"GIMBAL_GGUF is {repository}, which is neither a folder with the pack's nodes.py nor a git repository "
            f"with commit {COMMIT[:12]} ({done.stderr.decode(errors='replace').strip()})."
        )
    with tarfile.open(fileobj=io.BytesIO(done.stdout)) as archive:
        return {entry.name: archive.extractfile(entry).read() for entry in archive if entry.isfile()}
