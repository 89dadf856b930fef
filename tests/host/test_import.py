"""What the pack adds to ComfyUI's start-up: little time, no further packages, not a word."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LIMIT_MS = 100  # of CPU time, so that a busy machine makes no difference


@pytest.fixture(scope="module")
def added(comfyui_home, tmp_path_factory):
    folder = tmp_path_factory.mktemp("import")
    # Up to 0.3.68 ComfyUI insists on a folder of the templates package that newer ones no longer have.
    (folder / "comfyui_workflow_templates" / "templates").mkdir(parents=True)
    (folder / "comfyui_workflow_templates" / "__init__.py").touch()
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (comfyui_home, folder)))}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # ComfyUI writes it, so only the first start compiles
    command = [sys.executable, "-X", f"pycache_prefix={folder}", Path(__file__).with_name("import_probe.py"), ROOT]
    done = subprocess.run(list(map(str, command)), cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_every_node_is_there(added):
    assert added["nodes"] == len(list((ROOT / "web" / "docs").glob("*.md")))


def test_no_package_that_comfyui_has_not_loaded(added):
    assert added["packages"] == []


def test_little_time(added):
    assert added["again_ms"] < LIMIT_MS, added


def test_not_a_word(added):
    assert added["said"] == ""
