"""The help panel of ComfyUI's own frontend: our page in the user's language, with its picture."""

import json
import urllib.request
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NODE = "GimbalSAMG"


@pytest.fixture(scope="module")
def running():
    from devkit import browser

    if browser.chromium() is None:
        pytest.skip("no Chromium on this machine")
    with browser.browser() as running:
        yield running


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
def test_it_shows_the_page_and_its_picture(running, server, speaking, artefacts, language):
    from devkit import browser

    speaking(language)
    page = browser.opened(running, server.url, 1500, 1000)
    browser.render(page, vue=False)
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
    browser.click_title(page)  # a selected node has buttons over it
    page.get_by_test_id("info-button").click()
    page.wait_for_selector(".node-help-content h2")
    page.wait_for_function("() => document.querySelector('.node-help-content img')?.naturalWidth > 0")
    page.screenshot(path=artefacts / f"help_{language}.png")
    path = f"{NODE}.md" if language == "en" else f"{NODE}/{language}.md"
    text = (ROOT / "web" / "docs" / path).read_text(encoding="utf-8")
    parts = page.locator(".node-help-content h2").all_inner_texts()
    assert parts == [line.removeprefix("## ") for line in text.splitlines() if line.startswith("## ")]
    page.close()
