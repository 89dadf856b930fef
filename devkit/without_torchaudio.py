"""An empty torchaudio where the real one is missing or does not load; dev.py copies this file into its environment.

ComfyUI imports torchaudio at start for nodes that resample sound. Its wheel may be built for another torch (CUDA against
CPU), and then ComfyUI does not start. With this finder in place `import torchaudio` always works; what is taken from the
empty one raises AttributeError (ImportError from `from torchaudio.transforms import ...`). A torchaudio that loads is used.
"""

from __future__ import annotations

import sys
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

NAME, PARTS = "torchaudio", ("functional", "transforms")


class RealOrEmpty(Loader):
    """Load the real package, and the empty one when that fails."""

    def __init__(self, real: Loader | None):
        self.real = real

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.real.create_module(spec) if self.real else None

    def exec_module(self, module: ModuleType) -> None:
        if self.real is not None:
            try:
                return self.real.exec_module(module)
            except (ImportError, OSError, RuntimeError):  # a library it is linked to, or a CUDA version, is not there
                for name in [name for name in sys.modules if name.startswith(f"{NAME}.")]:
                    del sys.modules[name]
        for name in set(vars(module)) - {"__name__", "__spec__", "__loader__", "__package__", "__builtins__"}:
            delattr(module, name)
        module.__path__ = []
        module.gimbal_empty = True
        for part in PARTS:
            empty = ModuleType(f"{NAME}.{part}", "Empty: torchaudio does not load here.")
            sys.modules[empty.__name__] = empty
            setattr(module, part, empty)
        return None


class FindTorchaudio(MetaPathFinder):
    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        if name != NAME:
            return None
        real = PathFinder.find_spec(name)
        if real is None or real.loader is None:
            return ModuleSpec(name, RealOrEmpty(None), is_package=True)
        real.loader = RealOrEmpty(real.loader)
        return real


sys.meta_path.insert(0, FindTorchaudio())
