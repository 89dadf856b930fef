"""The map of the repository names files that are there."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = ("mymethod", "mycorrector", "_name")  # of how to add one


def test_every_file_that_it_names_exists():
    text = (ROOT / "docs" / "ARCHITECTURE.md").read_text(encoding="utf-8")
    here = [path.relative_to(ROOT).as_posix() for path in ROOT.rglob("*.py")]
    named = [name for name in re.findall(r"`([\w/]+\.py)`", text) if not any(word in name for word in EXAMPLES)]
    assert len(named) > 50
    assert [name for name in named if not any(f"/{path}".endswith(f"/{name}") for path in here)] == []


def test_every_folder_of_kernels_is_on_it():
    """A reader who looks for a method finds its file by topic."""
    text = (ROOT / "docs" / "ARCHITECTURE.md").read_text(encoding="utf-8")
    small = {"__init__", "device", "normal", "schedule", "shapes"}  # helpers of several topics
    kernels = {path.stem for path in (ROOT / "core").glob("*.py")} - small
    assert [name for name in sorted(kernels) if f"`{name}.py`" not in text and f"`core/{name}.py`" not in text] == []
