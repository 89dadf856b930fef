"""The pack in ComfyUI's own frontend, in a real browser: found, opened, looked up and run as a person would."""

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DEMO = ROOT / "demo" / "workflows" / "micrograin.json"
WORKFLOWS = sorted((ROOT / "workflows").glob("*.json"))
HELP = sorted((ROOT / "web" / "docs").glob("*.md"))
BLUEPRINTS = sorted((ROOT / "subgraphs").glob("*.json"))
RED = "() => app.graph._nodes.filter(n => n.has_errors || !LiteGraph.registered_node_types[n.type]).map(n => n.type)"
IMAGES = "kind => app.graph._nodes.filter(n => n.type === kind).map(n => n.imgs?.length ?? 0)"
# Boxes as the frontend lays them out, which may be larger than what was saved.
BOXES = "() => app.graph._nodes.map(n => [`${n.id} ${n.type}`, ...n.boundingRect])"
GROUPS = "() => app.graph._groups.map(g => [g.title, ...g._bounding])"
CUT = """() => app.graph._nodes.filter(n => n.type === "MarkdownNote").map(n => n.widgets[0].element)
    .filter(e => e.scrollHeight > e.clientHeight + 1).map(e => e.innerText)"""
# What the frontend does by itself: it asks the registry about packs, and for a page in the reader's language first.
NOT_OURS = re.compile(r"api\.comfy\.org|/docs/Gimbal\w+/en\.md")


@pytest.fixture(scope="module")
def page(server):
    from devkit import browser

    if browser.chromium() is None:
        pytest.skip("no Chromium on this machine")
    with browser.frontend(server.url) as page:
        yield page


def saved(path):
    return json.loads(path.read_text(encoding="utf-8"))


def apart(a, b):
    (_, ax, ay, aw, ah), (_, bx, by, bw, bh) = a, b
    return ax + aw <= bx or bx + bw <= ax or ay + ah <= by or by + bh <= ay


def test_template_browser_lists_every_workflow_with_its_picture(page, artefacts):
    page.locator(".side-tool-bar-container").get_by_text("Templates").click()
    page.get_by_text("gimbal", exact=True).click()

    def picture_of(card):
        card.scroll_into_view_if_needed()
        page.wait_for_function(
            "card => Array.from(card.querySelectorAll('img')).some(img => img.complete && img.naturalWidth === 400)",
            arg=card.element_handle(),
        )

    for path in WORKFLOWS:
        picture_of(page.get_by_test_id(f"template-workflow-{path.stem}"))
    cards = page.locator("[data-testid^=template-workflow-]")
    assert cards.count() == len(WORKFLOWS)
    picture_of(cards.first)
    page.wait_for_timeout(500)  # they fade in
    page.screenshot(path=artefacts / "templates.png")


def test_a_card_opens_its_workflow_and_offers_the_missing_models(page, artefacts):
    page.get_by_test_id("template-workflow-wan_side_by_side").click()
    wanted = saved(ROOT / "workflows" / "wan_side_by_side.json")
    page.wait_for_function("count => app.graph._nodes.length === count", arg=len(wanted["nodes"]))
    offered = page.locator(".p-dialog").inner_text()
    models = [model for node in wanted["nodes"] for model in node["properties"].get("models", [])]
    assert len(models) == 3
    for model in models:
        assert model["name"] in offered and model["directory"] in offered
    page.wait_for_timeout(500)  # it fades in
    page.screenshot(path=artefacts / "missing_models.png")
    page.keyboard.press("Escape")
    page.locator(".p-dialog").wait_for(state="detached")


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_bundled_workflow_opens_as_it_was_saved(page, artefacts, path):
    from devkit import browser

    flow = saved(path)
    browser.load(page, flow)
    assert page.evaluate(RED) == []
    shown = page.evaluate("""() => app.graph._nodes.map(
        n => [n.id, n.type, (n.widgets ?? []).filter(w => w.name !== "control_after_generate").map(w => w.value)]
    )""")
    for number, kind, values in shown:
        (node,) = (node for node in flow["nodes"] if node["id"] == number)
        kept = [value for value in node["widgets_values"] if value != "fixed"]
        assert node["type"] == kind and values[: len(kept)] == kept
    assert page.evaluate("() => Object.keys(app.graph.links).length || app.graph.links.size") == len(flow["links"])
    page.wait_for_timeout(700)  # for notes to be drawn
    page.screenshot(path=artefacts / f"{path.stem}_in_browser.png")


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_nothing_lies_over_anything_else(page, path):
    from devkit import browser

    browser.load(page, saved(path))
    boxes, groups = page.evaluate(BOXES), page.evaluate(GROUPS)
    assert [(a[0], b[0]) for i, a in enumerate(boxes) for b in boxes[:i] if not apart(a, b)] == []
    assert [(a[0], b[0]) for i, a in enumerate(groups) for b in groups[:i] if not apart(a, b)] == []
    for name, x, y, width, height in boxes:
        inside = [gx < x and gy < y and x + width < gx + gw and y + height < gy + gh for _, gx, gy, gw, gh in groups]
        outside = [apart((name, x, y, width, height), group) for group in groups]
        assert any(inside) or all(outside), name
    page.evaluate("() => { app.canvas.ds.scale = 1; app.canvas.setDirty(true, true) }")
    page.wait_for_timeout(300)
    assert page.evaluate(CUT) == []


@pytest.mark.parametrize("path", HELP, ids=lambda path: path.stem)
def test_node_is_found_by_search_and_has_its_help_page(page, server, artefacts, path):
    from devkit import browser

    browser.add_from_search(page, server.get(f"/object_info/{path.stem}")[path.stem]["display_name"])
    assert page.evaluate("() => app.graph._nodes[0].type") == path.stem
    assert page.evaluate(RED) == []
    browser.click_title(page)
    page.get_by_test_id("info-button").click()
    heading = path.read_text(encoding="utf-8").splitlines()[0].removeprefix("# ")
    page.locator(".node-help-content h1").filter(has_text=heading).wait_for()
    page.screenshot(path=artefacts / f"help_{path.stem}.png")
    page.get_by_test_id("info-button").click()  # closes it again


def test_run_from_the_frontend_makes_pictures(page, artefacts):
    from devkit import browser

    browser.load(page, saved(DEMO))
    assert page.evaluate(RED) == []
    browser.press_run(page)
    page.wait_for_function(f"() => ({IMAGES})('SaveImage')[0] > 0")
    browser.fit(page)
    page.wait_for_timeout(1000)
    page.screenshot(path=artefacts / "demo_in_browser.png")


def previewed():
    """A small graph with everything of ours that shows a picture."""
    model = {"unet_name": "gimbal_letters_fp16.safetensors", "weight_dtype": "default"}
    sampled = {"seed": 1, "steps": 4, "cfg": 5.0, "sampler_name": "euler", "scheduler": "simple", "denoise": 1.0}
    sampled |= {"model": ["6", 0], "positive": ["3", 0], "negative": ["3", 1], "latent_image": ["3", 2]}
    calibrated = {"full_model": ["1", 0], "quantized_model": ["2", 0], "positive": ["3", 0], "negative": ["3", 1]}
    calibrated |= {"latent": ["3", 2], "cfg": 3.0, "steps": 4, "runs": 2, "held_out": 1, "filename": "browser"}
    return {
        "1": ("UNETLoader", model),
        "2": ("UNETLoader", {**model, "weight_dtype": "fp8_e4m3fn"}),
        "3": ("GimbalDemoLetters", {"text": "GIM", "rows": 1}),
        "4": ("GimbalSAMG", {"model": ["1", 0]}),
        "6": ("GimbalConfidence", {"model": ["4", 0], "tile": 8, "stride": 4}),
        "7": ("KSampler", sampled),
        "8": ("GimbalGuidancePreview", {"latent": ["7", 0], "model": ["6", 0]}),
        "9": ("PreviewImage", {"images": ["8", 0]}),
        "10": ("GimbalConfidencePreview", {"latent": ["7", 0], "model": ["6", 0]}),
        "11": ("PreviewImage", {"images": ["10", 0]}),
        "12": ("GimbalQDriftCalibrate", calibrated),
        "13": ("GimbalQDriftReport", {"stats": ["12", 0]}),
    }


def test_previews_and_reports_show_their_pictures(page, artefacts):
    from devkit import browser

    graph = {number: {"class_type": kind, "inputs": inputs} for number, (kind, inputs) in previewed().items()}
    page.evaluate("graph => app.loadApiJson(graph, 'previews')", graph)
    page.wait_for_function("count => app.graph._nodes.length === count", arg=len(graph))
    page.evaluate("""() => {
        for (const n of app.graph._nodes) if (/^PreviewImage|Report$/.test(n.type)) n.size = [700, 500]
        app.graph.arrange(60)
    }""")
    browser.press_run(page)
    for kind, nodes in (("PreviewImage", 2), ("GimbalQDriftCalibrate", 1), ("GimbalQDriftReport", 1)):
        page.wait_for_function(f"kind => ({IMAGES})(kind).every(count => count === 1)", arg=kind)
        assert len(page.evaluate(IMAGES, kind)) == nodes
    browser.fit(page)
    page.wait_for_timeout(1000)
    page.screenshot(path=artefacts / "previews_in_browser.png")


def test_blueprint_is_found_by_search_and_runs(page, server, artefacts):
    from devkit import browser

    if "subgraph" not in str([path.name for path in (server.home / "app").iterdir()]):
        pytest.skip("this ComfyUI serves no blueprints; they came with 0.3.67")
    for path in BLUEPRINTS:
        browser.add_from_search(page, path.stem)
        assert page.evaluate("() => app.graph._nodes[0].title") == path.stem
        (published,) = saved(path)["nodes"]
        shown = page.evaluate("() => app.graph._nodes[0].widgets.map(w => [w.name, w.value])")
        names = [name for _, name in published["properties"]["proxyWidgets"]]
        assert shown == [list(pair) for pair in zip(names, published["widgets_values"], strict=True)]
    browser.add_from_search(page, "Stabilised KSampler (Gimbal)")
    page.evaluate("""() => {
        const sampler = app.graph._nodes[0], widget = name => sampler.widgets.find(w => w.name === name)
        const add = (type, ...pos) => { const n = LiteGraph.createNode(type); n.pos = pos; app.graph.add(n); return n }
        const model = add("UNETLoader", 200, 200), letters = add("GimbalDemoLetters", 200, 400)
        const picture = add("GimbalDemoDecode", 1300, 200), save = add("SaveImage", 1300, 320)
        const preview = add("PreviewImage", 1300, 600)
        model.widgets[0].value = "gimbal_letters_fp16.safetensors"
        model.connect(0, sampler, 0)
        for (const slot of [0, 1, 2]) letters.connect(slot, sampler, slot + 1)
        sampler.connect(0, picture, 0); picture.connect(0, save, 0); sampler.connect(1, preview, 0)
        widget("steps").value = 4; widget("samg").value = 1
    }""")
    before = len(server.log_lines())
    browser.press_run(page)
    page.wait_for_function(f"() => ({IMAGES})('SaveImage')[0] === 6 && ({IMAGES})('PreviewImage')[0] === 1")
    acted = [line for line in server.log_lines()[before:] if "acted on" in line]
    assert len(acted) == 3, acted
    browser.fit(page)
    page.wait_for_timeout(1000)
    page.screenshot(path=artefacts / "blueprint_in_browser.png")


def test_no_error_of_ours(page):
    ours = [error for error in page.errors if "gimbal" in error.lower() and not NOT_OURS.search(error)]
    assert not ours, page.errors
