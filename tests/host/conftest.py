"""Fixtures around a real ComfyUI: in this process for sampling, as a server for everything over HTTP."""

import importlib.util
import shutil
import sys
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent


def load(name):
    """A module beside this one, for tests to import: pytest leaves their folder off sys.path."""
    spec = importlib.util.spec_from_file_location(name, HERE / f"{name}.py")
    sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


calibrating = load("calibrating")
load("rounding")
load("quantized_layouts")
folders, twin, calibrate = calibrating.folders, calibrating.twin, calibrating.calibrate


@pytest.fixture(scope="session")
def comfyui_home(request) -> Path:
    home = request.config.getoption("--comfyui")
    if home is None:
        pytest.skip("no ComfyUI given; `python dev.py test` gives one")
    return home.resolve()


@pytest.fixture(scope="session")
def comfy(comfyui_home):
    """ComfyUI imported into this process, on the CPU. Its command line is read at import, hence the detour."""
    threads = torch.get_num_threads()
    sys.path.insert(0, str(comfyui_home))
    saved, sys.argv = sys.argv, ["pytest", "--cpu", "--disable-xformers"]
    import comfy.options

    comfy.options.enable_args_parsing()
    import comfy.sample
    import comfy.sd

    sys.argv = saved
    torch.set_num_threads(threads)
    return comfy


@pytest.fixture(autouse=True)
def inference_mode():
    """As ComfyUI's executor does for all nodes."""
    with torch.inference_mode():
        yield


@pytest.fixture(scope="session")
def tiny(comfy, tmp_path_factory):
    """`tiny(family)`: a small random model of that family, loaded as "Load Diffusion Model" does."""
    return load("tiny_models").Tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def denoised_seen(tiny):
    """The predictions that the sampler receives, by step."""

    def denoised_seen(model, family="sd3", **options):
        seen = []
        tiny.sample(model, family, callback=lambda step, denoised, x, total: seen.append(denoised.clone()), **options)
        return seen

    return denoised_seen


@pytest.fixture(scope="session")
def server(comfyui_home, tmp_path_factory):
    """A server with the pack installed as published, the demo's nodes and model, and stand-ins for large models."""
    from devkit import base
    from devkit.server import Server

    folder = base.make(tmp_path_factory.mktemp("comfyui"))
    stand_ins = folder / "custom_nodes" / "stand_ins"
    shutil.copytree(HERE / "stand_ins", stand_ins, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy2(HERE / "tiny_models.py", stand_ins)
    with Server(comfyui_home, folder) as running:
        yield running


@pytest.fixture(scope="session")
def artefacts(request) -> Path:
    folder = request.config.getoption("--artefacts")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


FAILED = pytest.StashKey[bool]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """For fixtures that must not hand on what a failed test left behind."""
    report = yield
    if report.failed:
        item.stash[FAILED] = True
    return report


@pytest.fixture
def failed(request):
    """`failed()`: whether the test that asks for it did."""
    return lambda: request.node.stash.get(FAILED, False)
