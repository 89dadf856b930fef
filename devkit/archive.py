"""The archive that the registry publishes: the files git knows, but for what .comfyignore names."""

from __future__ import annotations

import subprocess
import zipfile
from pathlib import Path, PurePosixPath

from .paths import ROOT


def files() -> list[PurePosixPath]:
    """Relative to the root, with .comfyignore as git itself reads such files. What is new and not ignored counts: it
    will be committed.

    FileNotFoundError: the root is no git checkout, so there is nothing to publish from.
    """
    if not (ROOT / ".git").exists():
        raise FileNotFoundError(f"{ROOT} is no git checkout, so there is nothing to publish from.")
    known = _git("ls-files", "-z", "--cached", "--others", "--exclude-standard")
    excludes = ("-c", f"core.excludesFile={ROOT / '.comfyignore'}")
    ignored = _git(
        *excludes, "check-ignore", "--no-index", "--stdin", "-z", given="\0".join(known), may_find_none=True
    )
    names = set(known) - set(ignored)
    return sorted(PurePosixPath(name) for name in names if (ROOT / name).exists())


def write(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in files():
            archive.write(ROOT / file, str(file))


def _git(*arguments: str, given: str = "", may_find_none: bool = False) -> list[str]:
    """The names that a git command lists, separated by zeros."""
    done = subprocess.run(["git", *arguments], cwd=ROOT, input=given.encode(), capture_output=True)
    if done.returncode != 0 and not (may_find_none and done.returncode == 1):
        raise RuntimeError(f"git {' '.join(arguments)}: {done.stderr.decode().strip()}")
    return [name for name in done.stdout.decode().split("\0") if name]
