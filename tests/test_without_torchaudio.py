"""torchaudio's stand-in: `import torchaudio` works where the package is missing or broken, and never hides a real one."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SHIM = Path(__file__).resolve().parents[1] / "devkit" / "without_torchaudio.py"
REAL = "HERE = True\nfrom . import functional\n"
PACKAGES = {
    "missing": None,
    "no library": "from . import functional\nraise OSError('libcudart.so.13: cannot open shared object file')\n",
    "another CUDA": "raise RuntimeError('PyTorch has CUDA version 12.8 whereas TorchAudio has CUDA version 13.0')\n",
}


def run(folder, code):
    """In a Python without site-packages that finds `folder`'s torchaudio alone; the finder is imported at its start."""
    shutil.copy2(SHIM, folder)
    command = [sys.executable, "-S", "-c", f"import {SHIM.stem}\n{code}"]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=600, env={**os.environ, "PYTHONPATH": str(folder)}
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def package(folder, text):
    if text is not None:
        (folder / "torchaudio").mkdir()
        (folder / "torchaudio" / "__init__.py").write_text(text)
        (folder / "torchaudio" / "functional.py").write_text("def resample(x): return x\n")
    return folder


@pytest.mark.parametrize("kind", PACKAGES)
def test_comfyui_s_imports_work_without_it(tmp_path, kind):
    """Each way in which ComfyUI imports it; what is not there raises the errors that ComfyUI expects."""
    code = """
import torchaudio
import torchaudio.functional as AF
import torchaudio.transforms
try:
    from torchaudio.transforms import MelScale
except ImportError:
    print("ImportError")
try:
    AF.resample(1)
except AttributeError:
    print("AttributeError")
print(torchaudio.gimbal_empty)
"""
    assert run(package(tmp_path, PACKAGES[kind]), code) == ["ImportError", "AttributeError", "True"]


def test_one_that_loads_is_used(tmp_path):
    code = """
import torchaudio
import torchaudio.functional as AF
print(torchaudio.HERE, AF.resample(3), hasattr(torchaudio, "gimbal_empty"))
"""
    assert run(package(tmp_path, REAL), code) == ["True", "3", "False"]
