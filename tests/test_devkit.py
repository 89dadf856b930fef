"""The tools behind dev.py: what they refuse, and the conversion of saved workflows."""

import os
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from devkit import comfyui, graph, server, testing
from devkit.paths import ROOT, Stop

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


@pytest.fixture
def home_with(tmp_path, monkeypatch):
    """`home_with(main)`: a home with that main.py, which the Python of these tests runs."""
    monkeypatch.setattr(server, "PYTHON", Path(sys.executable))

    def home_with(main):
        home = tmp_path / "home"
        (home / "app").mkdir(parents=True)
        (home / "app" / "frontend_management.py").write_text("")
        (home / "main.py").write_text(textwrap.dedent(main))
        return home

    return home_with


def test_a_server_that_dies_is_said_with_its_log(home_with, tmp_path):
    with pytest.raises(Stop, match=r"(?s)ended while starting.*no such luck"):
        server.Server(home_with("raise SystemExit('no such luck')"), tmp_path).start()


# As ComfyUI does: it imports for a while, then binds the port, then tells its arguments.
SLOW_TO_BIND = """
    import http.server, json, sys, time

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps({"system": {"argv": sys.argv}}).encode())

    time.sleep(1)
    port = int(sys.argv[sys.argv.index("--port") + 1])
    http.server.HTTPServer(("127.0.0.1", port), Handler).serve_forever()
"""


@pytest.fixture
def running(home_with, tmp_path):
    """A server at a port of its own, and a folder for another one."""
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir()
    two.mkdir()
    with server.Server(home_with(SLOW_TO_BIND), one) as first:
        yield first, two


def test_a_port_that_another_server_takes_first_is_given_up(running, monkeypatch):
    """The other one answers at that port meanwhile, which must not pass for an answer of ours."""
    first, folder = running
    ports = [first.port, server.free_port()]
    monkeypatch.setattr(server, "free_port", iter(ports).__next__)
    with server.Server(first.home, folder) as second:
        assert second.port == ports[1]
        assert str(folder) in second.get("/system_stats")["system"]["argv"]


def test_ports_are_not_tried_for_ever(running, monkeypatch):
    first, folder = running
    tried = []
    monkeypatch.setattr(server, "free_port", lambda: tried.append(1) or first.port)
    monkeypatch.setattr(server, "ATTEMPTS", 2)
    with pytest.raises(Stop, match=f"port {first.port} is taken by another program"):
        server.Server(first.home, folder).start()
    assert len(tried) == 2


@pytest.mark.parametrize(
    ("workers", "rest", "expected"),
    [
        (None, [], "3"),
        ("0", [], "0"),
        ("auto", ["-q"], "auto"),
        (None, ["tests/core", "-k", "clamp"], "3"),
        (None, ["tests/core/test_tiles.py::test_one"], "0"),
        (None, ["--pdb"], "0"),
        (None, ["-p", "no:xdist"], None),
        ("2", ["-pno:xdist"], None),
        (None, ["--numprocesses=2"], None),
    ],
)
def test_processes_are_as_many_as_cores_unless_told(monkeypatch, workers, rest, expected):
    monkeypatch.delenv("PYTEST_ADDOPTS", raising=False)
    monkeypatch.setattr(testing, "cores", lambda: 3)
    assert testing.parallel(workers, rest)[1:2] == ([] if expected is None else [expected])
    monkeypatch.setattr(testing, "cores", lambda: 64)
    assert testing.parallel(None, [])[1] == str(testing.MOST_WORKERS)


def test_processes_chosen_in_the_environment_stay(monkeypatch):
    monkeypatch.setenv("PYTEST_ADDOPTS", "-n 1 --color=no")
    assert testing.parallel(None, []) == []
    assert testing.parallel("0", [])[:2] == ["-n", "0"]


@pytest.mark.parametrize(("codes", "expected"), [((0, 0), 0), ((1, 0), 1), ((5, 0), 5), ((0, 1), 1), ((1, 5), 5)])
def test_both_kinds_of_kernels_count_and_all_tests_come_last(monkeypatch, codes, expected):
    ran, codes = [], list(codes)
    monkeypatch.setattr(testing.environment, "run", lambda command, **how: ran.append((command, how)) or codes.pop(0))
    assert testing.run(["--comfyui=x"], None, [], twice=True) == expected
    (first, how), (second, _) = ran
    assert first == [*second, "-m", "numerics"] and "--comfyui=x" in second
    assert how["env"]["ATEN_CPU_CAPABILITY"] == "default" and how["env"]["ONEDNN_MAX_CPU_ISA"] == "AVX2"


def test_chosen_tests_run_once(monkeypatch):
    ran = []
    monkeypatch.setattr(testing.environment, "run", lambda command, **how: ran.append((command, how)) or 1)
    assert testing.run([], None, ["-k", "name"]) == 1
    ((command, how),) = ran
    assert command[-2:] == ["-k", "name"] and "env" not in how


def pytest_in(folder, *arguments):
    """pytest on a folder of tests of its own."""
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--rootdir", folder, *arguments, folder]
    return subprocess.run(list(map(str, command)), cwd=folder, env=os.environ, capture_output=True, text=True)


def test_processes_change_neither_the_summary_nor_the_exit_code(tmp_path):
    processes = testing.parallel("2", [])
    (tmp_path / "test_some.py").write_text("def test_one(): pass\ndef test_two(): assert False\n")
    assert pytest_in(tmp_path, *processes, "-k", "nothing").returncode == 5, "no test ran"
    done = pytest_in(tmp_path, *processes)
    assert done.returncode == 1 and "1 failed, 1 passed" in done.stdout.splitlines()[-1]


GROUPED = """
    import importlib.util, os, pytest, sys

    for name in ("devkit", "devkit.grouping"):
        path = os.path.join({root!r}, *name.split("."))
        path = os.path.join(path, "__init__.py") if name == "devkit" else path + ".py"
        spec = importlib.util.spec_from_file_location(name, path)
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])

    def pytest_configure(config):
        config.pluginmanager.register(sys.modules["devkit.grouping"].Grouping())

    def pytest_itemcollected(item):
        item.add_marker(pytest.mark.xdist_group(str(item.callspec.params["i"] % 2)))
"""
PLACED = """
    import os, pytest

    @pytest.mark.parametrize("i", range(12))
    def test_place(i):
        print("of group", i % 2, "in", os.environ["PYTEST_XDIST_WORKER"])
"""


def test_a_group_stays_in_one_process(tmp_path):
    (tmp_path / "conftest.py").write_text(textwrap.dedent(GROUPED.format(root=str(ROOT))))
    (tmp_path / "test_some.py").write_text(textwrap.dedent(PLACED))
    done = pytest_in(tmp_path, *testing.parallel("2", []), "-rP")
    assert done.returncode == 0, done.stdout
    places = [line for line in done.stdout.splitlines() if line.startswith("of group")]
    assert len(places) == 12 and len(set(places)) == 2 == len({line.split(" in ")[1] for line in places}), places
