"""The translations against what a real server tells of the nodes, and as it hands them to the frontend."""

import json
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LANGUAGES = sorted(path.name for path in (ROOT / "locales").iterdir())


@pytest.fixture(scope="module")
def ours(server):
    info = server.get("/object_info")
    return {name: entry for name, entry in info.items() if entry["python_module"].endswith("custom_nodes.gimbal")}


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_tooltip_is_translated_and_none_is_orphaned(ours, language):
    found = json.loads((ROOT / "locales" / language / "nodeDefs.json").read_text(encoding="utf-8"))
    for name, entry in ours.items():
        inputs = {**entry["input"].get("required", {}), **entry["input"].get("optional", {})}
        english = {label for label, (_, *rest) in inputs.items() if rest and rest[0].get("tooltip")}
        assert {label for label, one in found[name]["inputs"].items() if "tooltip" in one} == english, name
        explained = {str(i) for i, text in enumerate(entry.get("output_tooltips") or []) if text}
        assert {place for place, one in found[name]["outputs"].items() if "tooltip" in one} == explained, name


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_server_hands_them_on(server, language):
    """Other packs' texts may be among them; ours must be as they are."""
    served = server.get("/i18n")[language]
    for path in (ROOT / "locales" / language).glob("*.json"):
        ours = json.loads(path.read_text(encoding="utf-8"))
        told = served if path.name == "main.json" else served[path.stem]
        for key, value in ours.items():
            assert {name: told[key].get(name) for name in value} == value, f"{path.name} {key}"


def test_english_names_match_the_help_pages(ours):
    for name, entry in ours.items():
        page = (ROOT / "web" / "docs" / f"{name}.md").read_text(encoding="utf-8")
        assert page.startswith(f"# {entry['display_name']}\n"), name
