"""Every node's help page, in every language: its parts, its options with their defaults, its pictures."""

import json
import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "web" / "docs"
NODES = json.loads((ROOT / "tests" / "host" / "signatures.json").read_text(encoding="utf-8"))
# The parts of a page in each language, and how a sentence ends there.
PARTS = {
    "en": ["Options", "When to use it", "When not", "Cost", "Limits", "Source"],
    "zh": ["选项", "何时使用", "何时不用", "开销", "限制", "来源"],
    "ja": ["オプション", "使うとき", "使わないとき", "コスト", "制限", "出典"],
}
COLON = ": |\uff1a"
END = {"en": r"\.(?=\s|$)", "zh": "。", "ja": "。"}
# Nodes that only move files: a picture would say nothing.
WITHOUT_PICTURE = {"GimbalQDriftRecord", "GimbalQDriftLoad", "GimbalQDriftMerge"}
WITHOUT_PICTURE |= {"GimbalDemoLetters", "GimbalDemoDecode", "GimbalDemoSheet"}
LARGEST = 40_000  # bytes of a picture

each = pytest.mark.parametrize(("node", "language"), [(node, language) for node in NODES for language in PARTS])


def page(node, language):
    """English is what the frontend falls back to, so it lies where that looks."""
    path = DOCS / f"{node}.md" if language == "en" else DOCS / node / f"{language}.md"
    return path.read_text(encoding="utf-8")


def pictures(text):
    return re.findall(r"!\[[^\]]+\]\(([^)]+)\)", text)


def options(text):
    """{name: default}: an item of the list may hold several of both. A list, because in the help panel's usual width a
    table would be cut off."""
    found = {}
    listed = re.split(r"^## .+$", text, flags=re.MULTILINE)[1]
    for item in re.findall(r"^- (.+)$", listed, re.MULTILINE):
        names = re.findall(r"`(\w+)`", re.split(COLON, item)[0])
        told = re.search(rf"\*(?:Default|默认值|既定値)(?:{COLON})(.+?)(?:\.(?=[ *])|。)", item)
        defaults = told[1].split(", ") if told else ["-"] * len(names)
        assert len(names) == len(defaults) > 0, item
        found |= dict(zip(names, defaults, strict=True))
    return found


def default_of(entry):
    value = entry.get("default")
    if value is None:
        return "-"
    if isinstance(value, str):
        return f"`{value}`" if value else '`""`'
    return f"{value:g}"


@each
def test_page_has_its_parts(node, language):
    text = page(node, language)
    assert re.findall(r"^## (.+)$", text, re.MULTILINE) == PARTS[language]
    assert len(re.findall(r"^# (.+)$", text, re.MULTILINE)) == 1 and text.startswith("# ")
    for part in re.split(r"^#+ .+$", text, flags=re.MULTILINE)[1:]:
        assert part.strip(), f"{node} ({language}) has an empty part"


@each
def test_page_begins_with_two_sentences(node, language):
    first = page(node, language).split("\n\n")[1]
    assert len(re.findall(END[language], first)) == 2, first


@each
def test_page_lists_every_option_with_its_default(node, language):
    expected = {entry["name"]: default_of(entry) for entry in NODES[node]["inputs"]}
    assert options(page(node, language)) == expected


@each
def test_pictures_are_there_and_small(node, language):
    shown = pictures(page(node, language))
    assert shown == pictures(page(node, "en"))
    assert bool(shown) == (node not in WITHOUT_PICTURE)
    for name in shown:  # the frontend takes links as relative to web/docs, whatever the page's own folder
        assert 0 < (DOCS / name).stat().st_size < LARGEST, name


@each
def test_values_are_those_of_the_node(node, language):
    """Options and words in code font are the same in every language."""
    marked = [sorted(set(re.findall(r"`([^`\n]+)`", page(node, which)))) for which in ("en", language)]
    assert marked[0] == marked[1]


def test_nothing_is_orphaned():
    files = {path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*") if path.is_file()}
    pages = {f"{node}.md" for node in NODES} | {
        f"{node}/{code}.md" for node in NODES for code in PARTS if code != "en"
    }
    assert files == pages | {name for node in NODES for name in pictures(page(node, "en"))}


def test_figures_name_rows_that_are_there():
    """What a page quotes of the measurements, in quotes after the file's name, stands in that file."""
    measured = (ROOT / "docs" / "RESULTS.md").read_text(encoding="utf-8")
    quoted = [
        row
        for node in NODES
        for part in re.findall(r"docs/RESULTS\.md, ([^)]*)\)", page(node, "en"))
        for row in re.findall(r'"([^"]+)"', part)
    ]
    assert quoted and not [row for row in quoted if row not in measured]


@each
def test_page_links_what_was_measured(node, language):
    """By its address, for docs/ is not in the archive: a heading of a page of the repository."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    start = f"{project['urls']['Repository']}/blob/main/"
    targets = re.findall(rf"\]\({re.escape(start)}([^)#]+)#?([^)]*)\)", page(node, language))
    assert targets, "no link to the results"
    for file, anchor in targets:
        headings = re.findall(r"^#+ (.+)$", (ROOT / file).read_text(encoding="utf-8"), re.MULTILINE)
        anchors = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
        assert not anchor or anchor in anchors, anchor
