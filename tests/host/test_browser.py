"""The pack in ComfyUI's own frontend, in a real browser."""

import json
import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DEMO = ROOT / "demo" / "workflows" / "micrograin.json"
# Without these, Chromium's own connections keep failing on a machine without internet, and slow it down.
FLAGS = [
    "--no-sandbox",
    "--use-gl=swiftshader",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]
SIZE = {"width": 1600, "height": 1000}
RED = "() => app.graph._nodes.filter(n => n.has_errors || !LiteGraph.registered_node_types[n.type]).map(n => n.type)"
FIT = "() => app.extensionManager.command.execute('Comfy.Canvas.FitView')"


@pytest.fixture(scope="module")
def page(server):
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None:
        pytest.skip("no Chromium on this machine")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        page = browser.new_page(viewport=SIZE)
        page.errors = []
        page.on("pageerror", lambda error: page.errors.append(str(error)))
        page.goto(server.url)
        page.wait_for_function("() => Boolean(window.app?.graph && LiteGraph.registered_node_types.GimbalMicrograin)")
        page.wait_for_timeout(2000)  # the frontend has no word for "all set"
        yield page
        browser.close()


def load(page, workflow):
    page.evaluate("workflow => window.app.loadGraphData(workflow)", workflow)
    page.wait_for_function("count => window.app.graph._nodes.length === count", arg=len(workflow["nodes"]))


def test_the_node_shows_its_options(page, artefacts):
    page.evaluate("""() => {
        app.graph.clear()
        const node = LiteGraph.createNode("GimbalMicrograin")
        node.pos = [500, 250]
        app.graph.add(node)
    }""")
    title, widgets = page.evaluate(
        "() => { const n = app.graph._nodes[0]; return [n.title, n.widgets.map(w => [w.name, w.value])] }"
    )
    assert title == "Micrograin (QSilk)"
    assert dict(map(tuple, widgets)) == {
        "form": "hard",
        "q_low": 0.001,
        "q_high": 0.999,
        "strength": 1,
        "start_percent": 0,
        "end_percent": 1,
        "knee": 0.8,
        "alpha": 2,
    }
    page.wait_for_timeout(500)
    page.screenshot(path=artefacts / "node.png")


def test_demo_workflow_opens_without_red_nodes_and_runs(page, server, artefacts):
    load(page, json.loads(DEMO.read_text(encoding="utf-8")))
    assert page.evaluate(RED) == []
    page.evaluate("""async () => {
        const end = new Promise((done, fail) => {
            app.api.addEventListener("execution_success", done, {once: true})
            app.api.addEventListener("execution_error", (event) => fail(event.detail.exception_message), {once: true})
        })
        await app.queuePrompt(0, 1)
        await end
    }""")
    page.wait_for_function(
        "() => Boolean(app.graph._nodes.find(n => n.type === 'SaveImage').imgs?.length)", timeout=30000
    )
    page.evaluate(FIT)
    page.wait_for_timeout(1000)
    page.screenshot(path=artefacts / "demo_in_browser.png")


@pytest.mark.parametrize("path", sorted((ROOT / "workflows").glob("*.json")), ids=lambda path: path.stem)
def test_bundled_workflow_opens_as_it_was_saved(page, artefacts, path):
    saved = json.loads(path.read_text(encoding="utf-8"))
    load(page, saved)
    assert page.evaluate(RED) == []
    shown = page.evaluate("""() => app.graph._nodes.map(
        n => [n.id, n.type, (n.widgets ?? []).filter(w => w.name !== "control_after_generate").map(w => w.value)]
    )""")
    for number, kind, values in shown:
        (node,) = (node for node in saved["nodes"] if node["id"] == number)
        kept = [value for value in node["widgets_values"] if value != "fixed"]
        assert node["type"] == kind and values[: len(kept)] == kept
    assert page.evaluate("() => Object.keys(app.graph.links).length || app.graph.links.size") == len(saved["links"])
    page.set_viewport_size({"width": 2600, "height": 1500})  # large enough for the text to be drawn
    page.evaluate(FIT)
    page.wait_for_timeout(1000)
    page.screenshot(path=artefacts / f"{path.stem}_in_browser.png")
    page.set_viewport_size(SIZE)


def test_no_error_of_ours(page):
    assert not [error for error in page.errors if "gimbal" in error.lower()], page.errors
