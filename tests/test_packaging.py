"""What users install: the right files, nothing forbidden, and a library that needs torch alone."""

import ast
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
PACK = ("core", "calibration", "host", "nodes")  # what users install beside __init__.py
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def published():
    from devkit.base import published_files

    return published_files()


def test_archive_holds_what_users_need_and_no_more(published):
    names = {str(path) for path in published}
    assert {"__init__.py", "pyproject.toml", "requirements.txt", "README.md", "LICENSE"} <= names
    assert {"nodes/samg.py", "host/sampling/hooks.py", "core/micrograin.py", "web/docs/GimbalMicrograin.md"} <= names
    tops = {path.parts[0] for path in published}
    assert not tops & {"tests", "devkit", "dev.py", "setup.py", "benchmarks", ".ci", ".github", ".dev", ".git"}
    assert not tops & {"MANIFEST.in", "CITATION.cff", "CONTRIBUTING.md", ".pre-commit-config.yaml"}
    tried = {"conditioning", "latent", "model", "nodes", "sheet", "__init__"}
    wanted = {f"demo/gimbal_demo/{name}.py" for name in tried} | {"demo/models/gimbal_letters_fp16.safetensors"}
    assert {name for name in names if name.startswith("demo/")} == wanted
    assert sum((ROOT / path).stat().st_size for path in published) < 15 * 10**6


def test_archive_is_what_git_would_publish(published):
    """The tests install `published_files`; the registry takes what git knows. Both must be the same."""
    from devkit import archive

    if not (ROOT / ".git").exists():
        pytest.skip("no git checkout to publish from")
    assert published == archive.files()


def test_metadata_is_what_the_registry_asks():
    project, comfy = PROJECT["project"], PROJECT["tool"]["comfy"]
    assert project["name"] == "gimbal" and re.fullmatch(r"\d+\.\d+\.\d+", project["version"])
    assert project["description"] and project["requires-python"] and project["license"] == "MIT"
    assert all((ROOT / file).is_file() for file in [project["readme"], *project["license-files"]])
    assert {"Homepage", "Documentation", "Repository", "Issues"} <= set(project["urls"])
    assert all(address.startswith("https://") for address in project["urls"].values())
    assert comfy["PublisherId"] and comfy["DisplayName"] == "Gimbal"
    # Any other form the registry's tool drops with a warning.
    assert re.fullmatch(r"(==|>=|<=|!=|~=|>|<)\d+\.\d+\.\d+", comfy["requires-comfyui"])
    kinds = [name.partition(" :: ")[2] for name in project["classifiers"] if name.startswith("Operating System")]
    assert kinds == ["OS Independent"]
    assert f"## {project['version']}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8") or (
        "## Unreleased" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    )


@pytest.mark.parametrize(("key", "ratio", "most"), [("Icon", 1, 400), ("Banner", 21 / 9, 1260)])
def test_pictures_of_the_registry(key, ratio, most):
    """A square of 400 pixels at most, and 21 to 9; read from the branch that the address names."""
    address = PROJECT["tool"]["comfy"][key]
    start = PROJECT["project"]["urls"]["Repository"].replace("github.com", "raw.githubusercontent.com") + "/main/"
    assert address.startswith(start)
    path = ROOT / address.removeprefix(start)
    with Image.open(path) as picture:
        width, height = picture.size
    assert width <= most and abs(width / height - ratio) < 0.01
    assert path.stat().st_size < 200_000


def workflow(name):
    found = yaml.safe_load((ROOT / ".github" / "workflows" / f"{name}.yml").read_text(encoding="utf-8"))
    return {**found, "on": found.get("on", found.get(True))}  # YAML 1.1 reads `on` as a truth value


def minor(version):
    return tuple(int(part) for part in version.split(".")[:2])


def test_library_is_tested_on_every_python_that_requires_python_allows():
    """From its bound to the newest that the metadata names, without gaps; and on the oldest of what it depends on."""
    lowest = minor(re.fullmatch(r">=(3\.\d+)", PROJECT["project"]["requires-python"])[1])
    prefix = "Programming Language :: Python :: 3."
    named = sorted(int(c.removeprefix(prefix)) for c in PROJECT["project"]["classifiers"] if c.startswith(prefix))
    library = workflow("test")["jobs"]["library"]
    cells = {minor(cell["python"]): cell["packages"].split() for cell in library["strategy"]["matrix"]["include"]}
    assert sorted(cells) == [(3, n) for n in named] == [(3, n) for n in range(lowest[1], named[-1] + 1)]
    assert library["steps"][-1]["run"] == "pytest tests/core tests/calibration"
    oldest = dict(package.split("==") for package in cells[lowest])
    bounds = dict(each.split(">=") for each in PROJECT["project"]["dependencies"] if ">=" in each)
    assert bounds and all(minor(oldest[name]) == minor(bound) for name, bound in bounds.items())
    assert cells[3, named[-1]] == ["torch", "numpy", "safetensors"]  # the newest


def test_development_tools_are_tested_on_every_system():
    cells = workflow("test")["jobs"]["test"]["strategy"]["matrix"]["include"]
    assert {cell["os"].partition("-")[0] for cell in cells} == {"ubuntu", "macos", "windows"}
    assert all(minor(cell["python"]) >= (3, 11) for cell in cells)  # which dev.py needs
    assert any(cell["quick"] == "" for cell in cells)


def test_nothing_is_published_before_the_tests_passed():
    jobs = workflow("publish")["jobs"]
    action = "Comfy-Org/publish-node-action"
    publishing = {name for name, job in jobs.items() if any(action in str(step) for step in job.get("steps", ()))}
    assert publishing == {"publish"} and jobs["publish"]["needs"] == "tests"
    # `always()` and the like would publish all the same; another ref would not be the commit that was tested.
    assert "if" not in jobs["publish"] and jobs["publish"]["steps"][0] == {"uses": "actions/checkout@v4"}
    assert jobs["tests"]["uses"] == "./.github/workflows/test.yml" and "workflow_call" in workflow("test")["on"]
    others = [path for path in (ROOT / ".github" / "workflows").glob("*.yml") if path.stem != "publish"]
    assert not [path.name for path in others if action in path.read_text(encoding="utf-8")]


def test_hooks_run_what_the_tests_run():
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    hooks = {hook["id"]: hook for repository in config["repos"] for hook in repository["hooks"]}
    assert set(hooks) == {"ruff-check", "ruff-format", "mypy"}
    [ruff] = [each for each in PROJECT["project"]["optional-dependencies"]["dev"] if each.startswith("ruff==")]
    assert hooks["ruff-check"]["additional_dependencies"] == hooks["ruff-format"]["additional_dependencies"] == [ruff]
    files = re.compile(hooks["mypy"]["files"])
    checked = [path.relative_to(ROOT).as_posix() for name in PACK for path in (ROOT / name).rglob("*.py")]
    assert all(map(files.search, ["__init__.py", "pyproject.toml", *checked]))
    assert "tests/test_types.py" in hooks["mypy"]["entry"] and (ROOT / "tests" / "test_types.py").is_file()


def test_citation_names_this_version_and_the_papers():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["cff-version"] == "1.2.0" and citation["message"] and citation["title"] and citation["authors"]
    project = PROJECT["project"]
    assert (citation["version"], citation["license"]) == (project["version"], project["license"])
    assert citation["repository-code"] == project["urls"]["Repository"]
    papers = {paper["identifiers"][0]["value"].removeprefix("arXiv:"): paper for paper in citation["references"]}
    assert all(paper["url"] == f"https://arxiv.org/abs/{number}" for number, paper in papers.items())
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    named = readme[readme.index("## Sources") :]
    for number, paper in papers.items():
        line = next(line for line in named.splitlines() if number in line)
        assert paper["authors"][0]["family-names"] in line and str(paper["year"]) in line
    assert set(papers) == {"2510.15761", "2603.18095", "2604.26503"}


def test_contributing_names_what_is_there():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)#]+)\)", text)
    assert "docs/ARCHITECTURE.md" in links and all((ROOT / link).is_file() for link in links)
    named = {name for name in re.findall(r"`([\w./]+)`", text) if "/" in name}
    assert not [name for name in named - {".dev/"} if not (ROOT / name).exists()]
    for command in re.findall(r"python dev\.py (\w+)", text):
        assert f'command("{command}"' in (ROOT / "dev.py").read_text(encoding="utf-8"), command


def test_requirements_add_nothing():
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    assert not [line for line in lines if line.strip() and not line.startswith("#")]


FORBIDDEN_MODULES = {"subprocess", "pip", "socket", "http", "urllib", "requests", "pickle", "marshal", "ctypes"}


def published_sources(published):
    return [ROOT / path for path in published if path.suffix == ".py"]


def test_sources_keep_the_registrys_and_our_rules(published):
    for path in published_sources(published):
        text = path.read_text(encoding="utf-8")
        assert not text.startswith("\ufeff"), path  # a mark that some readers take for a character
        text.encode("cp1252")  # Windows consoles and comfy-test read it so
        for node in ast.walk(ast.parse(text)):
            where = f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 0)}"
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id not in ("eval", "exec", "compile", "print", "__import__"), where
            if isinstance(node, ast.Attribute):
                assert ast.unparse(node) not in ("os.system", "os.popen", "torch.load", "sys.path"), where
            if isinstance(node, ast.ExceptHandler):
                caught = ast.unparse(node.type) if node.type else ""
                assert caught not in ("", "Exception", "BaseException"), where
            if isinstance(node, ast.Import | ast.ImportFrom):
                module = node.module if isinstance(node, ast.ImportFrom) else node.names[0].name
                assert (module or "").split(".")[0] not in FORBIDDEN_MODULES, where
            if isinstance(node, ast.Global):
                raise AssertionError(where)


def test_what_the_registrys_own_check_finds(published):
    """`comfy node validate` runs these rules over everything; over what users get they must find nothing."""
    files = [str(path) for path in published_sources(published)]
    rules = ["--isolated", "--no-cache", "--select", "S102,S307,E702"]
    command = [sys.executable, "-m", "ruff", "check", *rules, *files]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


FLOAT64 = {"torch.float64", "torch.double"}


def float64_made(path):
    """Where a float64 tensor is made that may lie on a device; one made of Python numbers lies on the CPU.

    `.double()` is how kernels answer a float64 input in its own type.
    """
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call):
            continue
        function, given = (
            ast.unparse(node.func),
            {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords},
        )
        wide = bool({*given.values(), *map(ast.unparse, node.args)} & FLOAT64)
        on_cpu = ".cpu()" in function or (function == "torch.tensor" and given.get("device", "'cpu'") == "'cpu'")
        if wide and not on_cpu:
            yield f"{path.name}:{node.lineno}: {function}"


def test_no_float64_reaches_a_device():
    """Apple GPUs have none. Kernels may accept it as input, never make it."""
    paths = [path for folder in ("core", "host", "nodes") for path in (ROOT / folder).rglob("*.py")]
    assert [place for path in paths for place in float64_made(path)] == []


def test_library_imports_without_comfyui(tmp_path):
    """As after `pip install`: the package by name, no ComfyUI, nothing printed."""
    (tmp_path / "gimbal").symlink_to(ROOT, target_is_directory=True)
    code = (
        "import sys, gimbal.core.micrograin, torch;"
        "assert 'comfy' not in sys.modules and 'comfy_api' not in sys.modules;"
        "x = torch.randn(2, 4, 8, 8); y = gimbal.core.micrograin.micrograin(x, 0.1, 0.9);"
        "assert y.shape == x.shape and y.max() < x.max()"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == done.stderr == ""


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A wheel and a source distribution, made by the build backend from a copy of everything in the repository."""
    from devkit.base import ALWAYS_IGNORED

    copy, out = tmp_path_factory.mktemp("build") / "source", tmp_path_factory.mktemp("dist")
    shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(*ALWAYS_IGNORED), symlinks=True)
    made = []
    for kind in ("wheel", "sdist"):
        code = f"from setuptools import build_meta; build_meta.build_{kind}({str(out)!r})"
        done = subprocess.run([sys.executable, "-c", code], cwd=copy, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        [path] = set(out.iterdir()) - set(made)
        made.append(path)
    return made


def library_files():
    """Of the repository, what `pip install` brings."""
    modules = [path for folder in ("core", "calibration") for path in (ROOT / folder).rglob("*.py")]
    return {"__init__.py", "py.typed", *(path.relative_to(ROOT).as_posix() for path in modules)}


def test_wheel_holds_the_library_alone(built):
    with zipfile.ZipFile(built[0]) as wheel:
        names = set(wheel.namelist())
    info = {"METADATA", "WHEEL", "RECORD", "top_level.txt", "licenses/LICENSE"}
    folder = f"gimbal-{PROJECT['project']['version']}.dist-info"
    assert names == {f"gimbal/{name}" for name in library_files()} | {f"{folder}/{name}" for name in info}


def test_source_distribution_holds_what_a_build_needs(built):
    with tarfile.open(built[1]) as source:
        names = {member.name.partition("/")[2] for member in source.getmembers() if member.isfile()}
    by_setuptools = {"PKG-INFO", "setup.cfg", *(name for name in names if name.startswith("gimbal.egg-info/"))}
    beside = {"LICENSE", "README.md", "MANIFEST.in", "pyproject.toml", "setup.py"}
    assert names - by_setuptools == library_files() | beside


def test_wheel_is_importable_without_comfyui(built, tmp_path):
    """Every module of it, from the unpacked wheel alone: no working directory, no repository on the path."""
    with zipfile.ZipFile(built[0]) as wheel:
        wheel.extractall(tmp_path)
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r});"
        "import gimbal, gimbal.core, gimbal.calibration, importlib, pkgutil;"
        "names = [module.name for module in pkgutil.walk_packages(gimbal.__path__, 'gimbal.')];"
        "[importlib.import_module(name) for name in names if not name.endswith('.__main__')];"
        "assert not {'comfy', 'comfy_api', 'nodes'} & set(sys.modules);"
        "print(gimbal.__file__, *names)"
    )
    done = subprocess.run([sys.executable, "-I", "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    file, *names = done.stdout.split()
    assert Path(file).parent == tmp_path / "gimbal"
    assert {"gimbal.core", "gimbal.calibration", "gimbal.calibration.__main__"} <= set(names)
    assert {name.split(".")[1] for name in names} == {"core", "calibration"}


def test_every_bundled_json_is_a_workflow():
    import json

    for path in [*(ROOT / "workflows").glob("*.json"), *(ROOT / "demo" / "workflows").glob("*.json")]:
        saved = json.loads(path.read_text(encoding="utf-8"))
        assert saved["nodes"] and saved["links"], path.name


def test_every_node_has_its_help_page():
    ids = set()
    for path in [*(ROOT / "nodes").glob("*.py"), ROOT / "demo" / "gimbal_demo" / "nodes.py"]:
        ids |= set(re.findall(r'node_id="(\w+)"', path.read_text(encoding="utf-8")))
    assert ids
    assert {path.stem for path in (ROOT / "web" / "docs").glob("*.md")} == ids


@pytest.mark.parametrize("arguments", [["check"], ["format", "--check"]])
def test_house_style(arguments):
    done = subprocess.run([sys.executable, "-m", "ruff", *arguments, "."], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
