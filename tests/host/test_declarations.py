"""How nodes present themselves: few widgets, the rest folded away, and found by the words that people type."""

import re
from pathlib import Path

import pytest

DOCS = Path(__file__).resolve().parents[2] / "web" / "docs"
WIDGETS = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"}
MOST = 4  # widgets that a node shows before it is asked for more
SAMPLERS = {"GimbalEqualStrength"}  # these show what ComfyUI's own KSampler shows
TYPED = {
    "burn": "GimbalMicrograin",
    "burnt": "GimbalAQClip",
    "oversaturated": "GimbalAQClip",
    "contrast": "GimbalAQClip",
    "cfg": "GimbalSAMG",
    "dynamic threshold": "GimbalMicrograin",
    "grain": "GimbalMicrograin",
    "gguf": "GimbalQDrift",
    "fp8": "GimbalQDrift",
    "nvfp4": "GimbalQDrift",
    "colour shift": "GimbalQDrift",
    "quality loss": "GimbalQDrift",
    "quantization": "GimbalQDrift",
    "composition": "GimbalPrecisionPlan",
}
FOLDED = {
    "en": "Folded away as advanced inputs in newer ComfyUI: ",
    "zh": "在较新的 ComfyUI 中作为高级输入折叠\uff1a",
    "ja": "新しいComfyUIでは詳細な入力として折りたたまれるもの\uff1a",
}


@pytest.fixture(scope="module")
def ours(server):
    info = server.get("/object_info")
    return {name: entry for name, entry in info.items() if entry["python_module"].endswith("custom_nodes.gimbal")}


def widgets(entry):
    """(name, whether it is folded away) of each."""
    for group in ("required", "optional"):
        for name, (kind, *told) in entry["input"].get(group, {}).items():
            if isinstance(kind, list) or kind in WIDGETS:
                yield name, bool(told and told[0].get("advanced"))


def test_a_node_shows_four_widgets_at_most(ours):
    shown = {name: [widget for widget, folded in widgets(entry) if not folded] for name, entry in ours.items()}
    assert {name: found for name, found in shown.items() if len(found) > MOST and name not in SAMPLERS} == {}
    assert shown["GimbalQDrift"] == ["correction", "strength"] and shown["GimbalAQClip"] == ["corridor", "strength"]


@pytest.mark.parametrize("language", FOLDED)
def test_the_help_page_names_what_is_folded_away(ours, language):
    for name, entry in ours.items():
        page = DOCS / f"{name}.md" if language == "en" else DOCS / name / f"{language}.md"
        lines = [line for line in page.read_text(encoding="utf-8").splitlines() if line.startswith(FOLDED[language])]
        told = [widget for line in lines for widget in re.findall(r"`(\w+)`", line)]
        assert told == [widget for widget, folded in widgets(entry) if folded], name


def test_words_that_people_type_are_in_the_description(ours):
    for words, name in TYPED.items():
        assert words in f"{ours[name]['display_name']} {ours[name]['description']}".lower(), (words, name)


def test_words_that_people_type_are_searched_by(ours, comfy):
    """By ComfyUI's own search, which looks at names and aliases alone."""
    import dataclasses

    from comfy_api.latest import io

    if "search_aliases" not in {field.name for field in dataclasses.fields(io.Schema)}:
        pytest.skip("this ComfyUI knows no search aliases")
    for words, name in TYPED.items():
        assert any(words in alias for alias in (ours[name]["display_name"].lower(), *ours[name]["search_aliases"])), (
            words
        )


def test_nodes_that_speak_for_a_model_are_no_ones_but_their_own(comfy):
    """ComfyUI must not answer one node from the cache with the output of another, or the wrong one would speak."""
    from gimbal.nodes import MODULES

    found = {node.define_schema().node_id for module in MODULES for node in module.NODES if node.NOT_IDEMPOTENT}
    assert found == {
        "GimbalMicrograin",
        "GimbalAQClip",
        "GimbalConfidence",
        "GimbalSAMG",
        "GimbalStabilise",
        "GimbalQDrift",
        "GimbalQDriftSampler",
        "GimbalPrecisionPlan",
    }
