"""Importing this makes the repository importable as `gimbal`, without an install and without its root on sys.path."""

import importlib.util
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def register_package() -> None:
    root = str(ROOT)
    spec = importlib.util.spec_from_file_location("gimbal", ROOT / "__init__.py", submodule_search_locations=[root])
    package = importlib.util.module_from_spec(spec)
    sys.modules["gimbal"] = package
    spec.loader.exec_module(package)


if "gimbal" not in sys.modules:
    register_package()
