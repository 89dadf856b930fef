"""Where things are. Everything made here lies under `.dev/`, which git ignores; nothing outside it is written."""

from __future__ import annotations

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DEV = Path(os.environ.get("GIMBAL_DEV_DIR", ROOT / ".dev")).resolve()
VENV = DEV / "venv"
PYTHON = VENV / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
LOCKS = ROOT / "devkit" / "locks"


class Stop(Exception):
    """One clear sentence for the person at the keyboard; dev.py prints it and exits with 1."""
