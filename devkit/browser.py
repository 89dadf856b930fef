"""ComfyUI's own frontend in a headless Chromium. Needs playwright, and a Chromium on the machine."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome")
# Without most of these, Chromium's own connections keep failing on a machine without internet, and slow it down.
FLAGS = (
    "--no-sandbox",
    "--use-gl=swiftshader",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
)
READY = "() => Boolean(window.app?.graph && LiteGraph.registered_node_types.GimbalMicrograin)"


def chromium() -> str | None:
    return next(filter(None, map(shutil.which, NAMES)), None)


@contextmanager
def frontend(url: str, width: int = 1600, height: int = 1000) -> Iterator[Any]:
    """A page (playwright's) with the frontend ready for use. `page.errors`: what it threw or logged as an error."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=list(FLAGS))
        page = browser.new_page(viewport={"width": width, "height": height})
        page.errors = []
        page.on("pageerror", lambda error: page.errors.append(str(error)))
        page.on("console", lambda message: message.type == "error" and page.errors.append(message.text))
        page.goto(url)
        page.wait_for_function(READY)
        page.wait_for_timeout(2000)  # the frontend has no word for "all set"
        yield page
        browser.close()


def load(page: Any, workflow: dict) -> None:
    """Open a saved workflow; missing model files are not asked for."""
    page.evaluate(
        "workflow => app.loadGraphData(workflow, true, true, null, {showMissingModelsDialog: false})", workflow
    )
    page.wait_for_function("count => app.graph._nodes.length === count", arg=len(workflow["nodes"]))
