"""The type checker over what users install; pyproject.toml says how strict it is where."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def checked(folder, package):
    """mypy's exit status and words on `folder/gimbal`, which is found by its name, as the repository root never is."""
    options = [f"--config-file={ROOT / 'pyproject.toml'}", f"--cache-dir={folder / 'cache'}", "--no-error-summary"]
    command = [sys.executable, "-m", "mypy", *options, "--package", package]
    environment = {**os.environ, "MYPYPATH": str(folder), "PYTHONSAFEPATH": "1"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


@pytest.fixture
def package(tmp_path):
    """A folder to check `gimbal` in: what users install of it, without the repository's name or its other code."""
    (tmp_path / "gimbal").mkdir()
    for name in ("__init__.py", "py.typed", "core", "calibration", "host", "nodes"):
        (tmp_path / "gimbal" / name).symlink_to(ROOT / name)
    (tmp_path / "gimbal" / "demo").mkdir()
    (tmp_path / "gimbal" / "demo" / "gimbal_demo").symlink_to(ROOT / "demo" / "gimbal_demo")
    return tmp_path


def test_types(package):
    status, words = checked(package, "gimbal")
    assert status == 0, words


@pytest.mark.parametrize(
    ("layer", "code", "fault"),
    [
        ("core", "def f(x): return x", "no-untyped-def"),
        ("calibration", "def f(x): return x", "no-untyped-def"),
        ("calibration", "def f(x: int) -> str: return x", "return-value"),
        ("host", "def f(x: int) -> str: return x", "return-value"),
        ("nodes", "def f(x): return undefined", "name-defined"),
    ],
)
def test_each_layer_is_checked(tmp_path, layer, code, fault):
    """Wrong code of a kind that the layer's strictness is to find, in a package of that layer alone."""
    folder = tmp_path / "gimbal" / layer
    folder.mkdir(parents=True)
    for name in (tmp_path / "gimbal" / "__init__.py", folder / "__init__.py"):
        name.touch()
    (folder / "wrong.py").write_text(code, encoding="utf-8")
    status, words = checked(tmp_path, "gimbal")
    assert status == 1 and f"gimbal/{layer}/wrong.py:1: error" in words and f"[{fault}]" in words
