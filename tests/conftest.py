"""Make the repository importable as `gimbal`, as ComfyUI does, and take the options that dev.py passes."""

import importlib.util
import os
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent


def register_package() -> None:
    """Not by putting the root on sys.path: its `nodes` would shadow ComfyUI's module of that name."""
    spec = importlib.util.spec_from_file_location(
        "gimbal", ROOT / "__init__.py", submodule_search_locations=[str(ROOT)]
    )
    package = importlib.util.module_from_spec(spec)
    sys.modules["gimbal"] = package
    spec.loader.exec_module(package)


def register_folder(name: str, folder: Path) -> None:
    """A package outside the pack, without its folder on sys.path."""
    spec = importlib.util.spec_from_file_location(
        name, folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    sys.modules[name] = importlib.util.module_from_spec(spec)


if "gimbal" not in sys.modules:
    register_package()
    register_folder("devkit", ROOT / "devkit")
    register_folder("evidence", ROOT / "benchmarks" / "evidence")


def pytest_addoption(parser):
    parser.addoption("--comfyui", type=Path, help="a ComfyUI checkout; the host tests are skipped without one")
    parser.addoption("--artefacts", type=Path, default=ROOT / ".dev" / "artefacts", help="where pictures go")
    parser.addoption("--update-signatures", action="store_true", help="write tests/host/signatures.json anew")
    parser.addoption(
        "--threads", type=int, default=1, help="of torch, in the tests and in the servers they start (default: 1)"
    )


def pytest_configure(config):
    config.addinivalue_line("markers", "numerics: depends on how the CPU's kernels round; run under two of them")
    if config.pluginmanager.hasplugin("xdist"):
        from devkit.grouping import Grouping

        config.pluginmanager.register(Grouping())
    # For networks this small a second thread mostly waits, the more so beside other workers.
    threads = config.getoption("--threads")
    torch.set_num_threads(threads)
    os.environ["OMP_NUM_THREADS"] = str(threads)


def pytest_itemcollected(item):
    """Group what shares something costly, for `--dist loadgroup`."""
    item.add_marker(pytest.mark.xdist_group(" ".join(_group(item))))


def pytest_collection_modifyitems(items):
    """Long groups first, so that none is left for the end."""
    items.sort(key=lambda item: START.index(_group(item)[0]))


START = ("server", "formats", "installed", "host", "pure")


def _group(item):
    """One group has one server, or one tiny model, or one file."""
    if item.path.parent.name != "host":
        return "pure", item.path.stem
    if "server" in item.fixturenames:
        return ("formats" if item.path.stem == "test_formats" else "server",)
    if "installed" in item.fixturenames:
        return ("installed",)
    family = item.callspec.params.get("family", "") if hasattr(item, "callspec") else ""
    return "host", item.path.stem, str(family)


@pytest.fixture(scope="session")
def gain_oracle():
    """tests/gain_oracle.py, which pytest leaves off sys.path."""
    spec = importlib.util.spec_from_file_location("gain_oracle", ROOT / "tests" / "gain_oracle.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
