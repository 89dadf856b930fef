"""Names and tooltips in other languages: all there, nothing left over, and in a form the frontend can read."""

import ast
import json
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
NODES = json.loads((ROOT / "tests" / "host" / "signatures.json").read_text(encoding="utf-8"))
LANGUAGES = ("de", "ja", "ko", "zh")  # ComfyUI's codes
HELP_LANGUAGES = ("ja", "zh")  # in others the frontend shows the English help
FILES = ("main.json", "nodeDefs.json")

in_each = pytest.mark.parametrize("language", LANGUAGES)


def read(language, file):
    return json.loads((ROOT / "locales" / language / file).read_text(encoding="utf-8"))


def texts(entry, path=""):
    for key, value in entry.items():
        if isinstance(value, dict):
            yield from texts(value, f"{path}.{key}")
        else:
            yield f"{path}.{key}", value


def categories():
    for path in [*(ROOT / "nodes").glob("*.py"), ROOT / "demo" / "gimbal_demo" / "nodes.py"]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.keyword) and node.arg == "category":
                yield from node.value.value.split("/")


def test_every_language_is_there():
    assert {path.name for path in (ROOT / "locales").iterdir()} == set(LANGUAGES)
    assert {path.stem for path in (ROOT / "web" / "docs").glob("*/*.md")} == set(HELP_LANGUAGES)
    for language in LANGUAGES:
        assert sorted(path.name for path in (ROOT / "locales" / language).iterdir()) == sorted(FILES)


@in_each
def test_every_node_input_and_output_has_a_name(language):
    found = read(language, "nodeDefs.json")
    assert set(found) == set(NODES)
    for name, node in NODES.items():
        assert set(found[name]) == {"display_name", "description", "inputs", "outputs"}, name
        assert set(found[name]["inputs"]) == {entry["name"] for entry in node["inputs"]}, name
        assert list(found[name]["outputs"]) == [str(i) for i in range(len(node["outputs"]))], name
        for slot in (*found[name]["inputs"].values(), *found[name]["outputs"].values()):
            assert "name" in slot and set(slot) <= {"name", "tooltip"}, name


@in_each
def test_every_category_has_a_name(language):
    assert set(read(language, "main.json")["nodeCategories"]) == set(categories())


@in_each
@pytest.mark.parametrize("file", FILES)
def test_no_text_is_empty_or_means_more_to_the_frontend(language, file):
    """In its messages braces, @ and | stand for values, links and plurals."""
    for path, text in texts(read(language, file)):
        assert text.strip() == text != "", path
        assert not set(text) & set("{}@|"), path


@in_each
def test_names_are_unique_within_a_node(language):
    for name, node in read(language, "nodeDefs.json").items():
        names = [entry["name"] for entry in node["inputs"].values()]
        assert len(set(names)) == len(names), name


@pytest.mark.parametrize("language", HELP_LANGUAGES)
def test_the_help_page_has_the_nodes_name(language):
    for name, node in read(language, "nodeDefs.json").items():
        page = (ROOT / "web" / "docs" / name / f"{language}.md").read_text(encoding="utf-8")
        assert page.startswith(f"# {node['display_name']}\n"), name
