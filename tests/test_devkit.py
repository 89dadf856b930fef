"""The tools behind dev.py: what they refuse, and the conversion of saved workflows."""

import socket

import pytest

from devkit import comfyui, graph, server
from devkit.paths import Stop

INFO = {
    "Sampler": {
        "input": {
            "required": {
                "model": ["MODEL", {}],
                "seed": ["INT", {"control_after_generate": True}],
                "steps": ["INT", {}],
                "name": [["euler", "heun"], {}],
                "amount": ["FLOAT", {"forceInput": True}],
            },
            "optional": {"note": ["STRING", {"multiline": True}]},
        }
    },
    "Loader": {"input": {"required": {"file": ["COMBO", {"options": ["a"]}]}}},
}


def saved(**changes):
    sampler = {
        "id": 2,
        "type": "Sampler",
        "inputs": [{"name": "model", "link": 5}, {"name": "steps", "link": None, "widget": {"name": "steps"}}],
        "widgets_values": [7, "fixed", 20, "heun", "hello"],
    }
    loader = {"id": 1, "type": "Loader", "inputs": [], "widgets_values": ["a"]}
    note = {"id": 3, "type": "MarkdownNote", "widgets_values": ["text"]}
    return {"nodes": [{**sampler, **changes}, loader, note], "links": [[5, 1, 0, 2, 0, "MODEL"]]}


def test_a_saved_workflow_becomes_an_api_prompt():
    assert graph.to_api(saved(), INFO) == {
        "1": {"class_type": "Loader", "inputs": {"file": "a"}},
        "2": {
            "class_type": "Sampler",
            "inputs": {"model": ["1", 0], "seed": 7, "steps": 20, "name": "heun", "note": "hello"},
        },
    }


def test_a_linked_widget_takes_the_link_and_uses_up_its_value():
    linked = saved(inputs=[{"name": "model", "link": 5}, {"name": "steps", "link": 5, "widget": {"name": "steps"}}])
    inputs = graph.to_api(linked, INFO)["2"]["inputs"]
    assert inputs["steps"] == ["1", 0] and inputs["name"] == "heun"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"type": "Gone"}, "the server has no Gone"),
        ({"mode": 4}, r"node 2 \(Sampler\) is muted or bypassed"),
        ({"widgets_values": [7, "fixed", 20]}, r"node 2 \(Sampler\): no saved value for name"),
    ],
)
def test_a_broken_workflow_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        graph.to_api(saved(**changes), INFO)


def test_a_folder_that_is_no_comfyui_is_refused(tmp_path):
    with pytest.raises(Stop, match="is not a ComfyUI checkout"):
        comfyui.locate(tmp_path)


def test_a_busy_port_is_said(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(Stop, match=r"port \d+ is taken by another program; choose another with --port"):
            server.Server(tmp_path, tmp_path, taken.getsockname()[1]).start()


def test_a_server_that_dies_is_said_with_its_log(tmp_path):
    home = tmp_path / "home"
    (home / "app").mkdir(parents=True)
    (home / "app" / "frontend_management.py").write_text("")
    (home / "main.py").write_text("raise SystemExit('no such luck')")
    with pytest.raises(Stop, match=r"(?s)ended while starting.*no such luck"):
        server.Server(home, tmp_path).start()
