"""The help panel of ComfyUI's own frontend: our page in the user's language, with its picture."""

import json
import shutil
import urllib.request
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FLAGS = ["--no-sandbox", "--use-gl=swiftshader", "--disable-background-networking", "--disable-component-update"]
NODE = "GimbalSAMG"


@pytest.fixture(scope="module")
def browser():
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None:
        pytest.skip("no Chromium on this machine")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def speaking(server):
    """`speaking(language)`: what a person chooses in the settings."""

    def speaking(language):
        request = urllib.request.Request(
            f"{server.url}/settings/Comfy.Locale",
            data=json.dumps(language).encode(),
            headers={"Content-Type": "application/json"},
            method="POST",
        )
        urllib.request.urlopen(request, timeout=300).close()

    yield speaking
    speaking("en")


@pytest.mark.parametrize("language", ["en", "ja", "zh"])
def test_it_shows_the_page_and_its_picture(browser, server, speaking, artefacts, language):
    speaking(language)
    page = browser.new_page(viewport={"width": 1500, "height": 1000})
    page.goto(server.url)
    page.wait_for_function("node => Boolean(window.app?.graph && LiteGraph.registered_node_types[node])", arg=NODE)
    page.wait_for_timeout(2000)  # the frontend has no word for "all set"
    page.evaluate(
        """node => {
            app.graph.clear()
            const made = LiteGraph.createNode(node)
            made.pos = [600, 200]
            app.graph.add(made)
            app.canvas.ds.reset()
        }""",
        NODE,
    )
    page.wait_for_timeout(500)
    page.mouse.click(700, 185)  # its title: a selected node has buttons over it
    page.get_by_test_id("info-button").click()
    page.wait_for_selector(".node-help-content h2")
    page.wait_for_function("() => document.querySelector('.node-help-content img')?.naturalWidth > 0")
    page.screenshot(path=artefacts / f"help_{language}.png")
    path = f"{NODE}.md" if language == "en" else f"{NODE}/{language}.md"
    text = (ROOT / "web" / "docs" / path).read_text(encoding="utf-8")
    parts = page.locator(".node-help-content h2").all_inner_texts()
    assert parts == [line.removeprefix("## ") for line in text.splitlines() if line.startswith("## ")]
    page.close()
