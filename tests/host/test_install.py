"""Installed as the Manager does it: the published archive unpacked into custom_nodes, requirements.txt, a start."""

import subprocess
import sys
import urllib.parse
import urllib.request
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def installed(comfyui_home, tmp_path_factory):
    """A server on a folder of its own, with nothing but what the archive holds."""
    from devkit import archive
    from devkit.server import Server

    if not (ROOT / ".git").exists():
        pytest.skip("no git checkout to publish from")
    base = tmp_path_factory.mktemp("installed")
    for folder in ("models", "input", "output", "temp", "user", "custom_nodes/gimbal"):
        (base / folder).mkdir(parents=True)
    archive.write(base / "node.zip")
    with zipfile.ZipFile(base / "node.zip") as published:
        published.extractall(base / "custom_nodes" / "gimbal")
    with Server(comfyui_home, base) as running:
        yield running


def fetch(server, path):
    with urllib.request.urlopen(server.url + path, timeout=300) as answer:
        return answer.read()


def test_requirements_install_nothing(installed):
    path = installed.base / "custom_nodes" / "gimbal" / "requirements.txt"
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--no-index", "-r", path]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Would install" not in done.stdout


def test_every_node_is_registered(installed):
    info = installed.get("/object_info")
    ours = {name for name, node in info.items() if node["python_module"].endswith("custom_nodes.gimbal")}
    assert ours == {path.stem for path in (ROOT / "web" / "docs").glob("*.md")}


def test_workflows_are_served(installed):
    names = installed.get("/workflow_templates")["gimbal"]
    assert sorted(names) == sorted(path.stem for path in (ROOT / "workflows").glob("*.json"))
    for name in names:
        served = fetch(installed, urllib.parse.quote(f"/api/workflow_templates/gimbal/{name}.json"))
        assert served == (ROOT / "workflows" / f"{name}.json").read_bytes()


def test_help_is_served(installed):
    """Where the frontend looks for it: pages, their translations, and the pictures in them."""
    pages = [path for path in (ROOT / "web" / "docs").rglob("*") if path.is_file()]
    assert pages
    for path in pages:
        place = path.relative_to(ROOT / "web").as_posix()
        assert fetch(installed, f"/extensions/gimbal/{place}") == path.read_bytes(), place


def test_the_log_has_no_complaint(installed):
    ours = [line for line in installed.log_lines() if "gimbal" in line.lower()]
    assert not [line for line in ours if any(word in line.lower() for word in ("warn", "error", "fail"))], ours
