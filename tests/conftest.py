"""Make the repository importable as `gimbal`, as ComfyUI does, and take the options that dev.py passes."""

import importlib.util
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def register_package() -> None:
    """Not by putting the root on sys.path: its `nodes` would shadow ComfyUI's module of that name."""
    spec = importlib.util.spec_from_file_location(
        "gimbal", ROOT / "__init__.py", submodule_search_locations=[str(ROOT)]
    )
    package = importlib.util.module_from_spec(spec)
    sys.modules["gimbal"] = package
    spec.loader.exec_module(package)


def register_devkit() -> None:
    spec = importlib.util.spec_from_file_location(
        "devkit", ROOT / "devkit" / "__init__.py", submodule_search_locations=[str(ROOT / "devkit")]
    )
    sys.modules["devkit"] = importlib.util.module_from_spec(spec)


if "gimbal" not in sys.modules:
    register_package()
    register_devkit()


def pytest_addoption(parser):
    parser.addoption("--comfyui", type=Path, help="a ComfyUI checkout; the host tests are skipped without one")
    parser.addoption("--artefacts", type=Path, default=ROOT / ".dev" / "artefacts", help="where pictures go")
    parser.addoption("--update-signatures", action="store_true", help="write tests/host/signatures.json anew")
