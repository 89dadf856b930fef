"""Which part of the pack may import what, read from the code itself: upper layers build on lower ones, never the reverse."""

import ast
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parent.parent
TRY_IT = "demo/gimbal_demo"  # the one part of demo/ that users install
# Each layer, and those it may import beside itself.
LAYERS = {
    "core": set(),
    "calibration": {"core"},
    "host": {"core", "calibration"},
    "nodes": {"core", "calibration", "host", TRY_IT},
    TRY_IT: set(),
    "devkit": set(),
    "demo": {"devkit", TRY_IT},
    "benchmarks": {"core", "calibration", "host", "devkit", "demo", TRY_IT},
}
PACK = ("core", "calibration", "host", "nodes", TRY_IT)  # what users install; they name each other relatively
COMFYUI = {
    "comfy",
    "comfy_api",
    "comfy_extras",
    "comfyui_version",
    "execution",
    "folder_paths",
    "node_helpers",
    "nodes",
    "server",
}
# Beside the standard library; for type checkers only, any.
THIRD_PARTY = {
    "core": {"torch"},
    "calibration": {"torch", "numpy", "safetensors"},
    "host": {"torch", "numpy", "PIL", *COMFYUI - {"comfy_api"}},
    "nodes": {"torch", "comfy_api"},
    TRY_IT: {"torch", "numpy", "PIL", "comfy", "comfy_api", "folder_paths"},
}
OPTIONAL = {("calibration/plots.py", "matplotlib")}  # imported where it is used
# Of ComfyUI, what a node's declaration needs beside comfy_api.
DECLARES = {
    ("nodes/equal_strength.py", "comfy.samplers"): "the choices of sampler_name and scheduler",
    ("nodes/_calibrating.py", "comfy.samplers"): "the choices of sampler_name and scheduler",
    ("nodes/qdrift.py", "comfy.samplers"): "the choices of sampler_name, and the SAMPLER that the node returns",
}
# A method kept for those who call it, whose work moved to a module above its own. It imports when it is called.
FORWARDS = {("calibration/statistics.py", "calibration/report.py")}


class Import(NamedTuple):
    path: str  # of the file that imports, relative to the root
    target: str  # file within the root, or else the dotted name
    at_load: bool  # when the module is imported, not in a function
    types_only: bool


def imports(root: Path, layer: str):
    """Every import of a layer's files, relative ones and those of `gimbal` resolved to files."""
    for path in sorted((root / layer).rglob("*.py")):
        yield from _imports(root, path)


def _imports(root, path):
    def visit(node, at_load, types_only):
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                found = [alias.name for alias in child.names]
            elif isinstance(child, ast.ImportFrom):
                found = list(_targets(root, path, child))
            else:
                inside = isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
                typing = isinstance(child, ast.If) and ast.unparse(child.test).endswith("TYPE_CHECKING")
                yield from visit(child, at_load and not inside, types_only or typing)
                continue
            for name in found:
                yield Import(str(path.relative_to(root)), _resolved(root, name), at_load, types_only)

    yield from visit(ast.parse(path.read_text(encoding="utf-8")), True, False)


def _targets(root, path, node):
    """`from a import b`: a.b if that is a module, else a."""
    base = node.module or ""
    if node.level:
        package = path.relative_to(root).parts[: -node.level]
        base = ".".join(["gimbal", *package, *([node.module] if node.module else [])])
    for alias in node.names:
        name = f"{base}.{alias.name}"
        yield name if _file(root, name) else base


def _file(root, name):
    parts = name.split(".")
    if parts[0] != "gimbal":
        return None
    place = root.joinpath(*parts[1:])
    for path in (place.with_suffix(".py"), place / "__init__.py"):
        if len(parts) > 1 and path.is_file():
            return path
    return None


def _resolved(root, name):
    path = _file(root, name)
    return name if path is None else path.relative_to(root).as_posix()


def layer_of(target):
    """Of a file, or of a package that scripts name absolutely."""
    if target.startswith(f"{TRY_IT}/"):
        return TRY_IT
    return target.split("/" if "/" in target else ".")[0]


def upward(root):
    """Imports of a layer that the importing one may not know."""
    for layer, below in LAYERS.items():
        for found in imports(root, layer):
            target = layer_of(found.target)
            inside = found.target.endswith(".py") or target == "devkit"
            if inside and target not in {layer, *below}:
                yield f"{found.path}: {found.target}"
            if target == "gimbal":  # neither a module of it nor the package of one
                yield f"{found.path}: {found.target} does not exist"


def foreign(root):
    """Third-party packages that a layer may not import."""
    for layer, allowed in THIRD_PARTY.items():
        for found in imports(root, layer):
            top = found.target.split(".")[0]
            if found.target.endswith(".py") or top in {*allowed, *sys.stdlib_module_names}:
                continue
            if found.types_only or ((found.path, top) in OPTIONAL and not found.at_load):
                continue
            if (found.path, found.target) not in DECLARES:
                yield f"{found.path}: {found.target}"


def between_nodes(root):
    """Imports of one node's module by another's; what they share lies in modules with a leading underscore."""
    for found in imports(root, "nodes"):
        name = found.target.removeprefix("nodes/")
        if found.path != "nodes/__init__.py" and name != found.target and not name.startswith("_"):
            yield f"{found.path}: {found.target}"


def circle(root):
    """The modules of a circle of imports, those in functions included; none if there is no circle."""
    graph = {}
    for layer in PACK:
        for found in imports(root, layer):
            if found.target.endswith(".py") and not found.types_only and not _forwards(found):
                graph.setdefault(found.path, set()).add(found.target)
    done = set()

    def walk(path, trail):
        if path in trail:
            return trail[trail.index(path) :]
        if path not in done:
            for target in sorted(graph.get(path, ())):
                found = walk(target, [*trail, path])
                if found:
                    return found
            done.add(path)
        return []

    return next((found for path in sorted(graph) if (found := walk(path, []))), [])


def _forwards(found):
    return not found.at_load and found[:2] in FORWARDS


def test_no_import_upwards():
    assert list(upward(ROOT)) == []


def test_only_the_third_party_packages_of_a_layer():
    assert list(foreign(ROOT)) == []


def test_nodes_do_not_import_nodes():
    assert list(between_nodes(ROOT)) == []


def test_no_circle():
    assert circle(ROOT) == []


def test_every_exception_is_in_use():
    found = [found for layer in PACK for found in imports(ROOT, layer)]
    pairs = {(each.path, each.target) for each in found}
    assert set(DECLARES) <= pairs and pairs >= FORWARDS
    assert {(each.path, each.target.split(".")[0]) for each in found} >= OPTIONAL


def test_the_package_itself_imports_nothing_at_load():
    """So that `import gimbal.core` needs torch alone."""
    found = [each for each in _imports(ROOT, ROOT / "__init__.py") if each.at_load]
    assert found == []


@pytest.mark.parametrize(
    ("rule", "path", "code"),
    [
        (upward, "core/a.py", "from ..calibration import b"),
        (upward, "calibration/b.py", "def f():\n    from ..host.c import x"),
        (upward, "host/c.py", "from ..nodes.d import Node"),
        (upward, "benchmarks/e.py", "from gimbal.nodes.d import Node"),
        (upward, "devkit/f.py", "import gimbal.core.a"),
        (upward, "benchmarks/e.py", "from gimbal.gone import x"),
        (foreign, "core/a.py", "import numpy as np"),
        (foreign, "calibration/b.py", "import comfy.samplers"),
        (foreign, "calibration/b.py", "def f():\n    import matplotlib"),
        (foreign, "calibration/plots.py", "import matplotlib"),
        (foreign, "host/c.py", "from comfy_api.latest import io"),
        (foreign, "nodes/d.py", "import comfy.samplers"),
        (upward, "nodes/d.py", "from ..demo.train import main"),
        (upward, "demo/gimbal_demo/i.py", "from ...core.a import f"),
        (between_nodes, "nodes/d.py", "from . import g"),
        (between_nodes, "nodes/d.py", "from .g import Node"),
        (circle, "core/a.py", "def f():\n    from .h import g"),
        (circle, "calibration/statistics.py", "from .report import text"),
    ],
)
def test_a_breach_is_found(rule, path, code, tmp_path):
    for name in (
        "core/a",
        "core/h",
        "calibration/b",
        "calibration/statistics",
        "host/c",
        "nodes/d",
        "nodes/g",
        "demo/train",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / f"{name}.py").touch()
    (tmp_path / "core" / "h.py").write_text("from .a import f")
    (tmp_path / "calibration" / "report.py").write_text("from .statistics import S")
    assert not list(rule(tmp_path))
    (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / path).write_text(code)
    assert len(list(rule(tmp_path))) >= 1
