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
TIMEOUT_MS = 180_000  # for what takes a second, on a core that many share
EMPTY = (900, 400)  # a place in the middle of the canvas
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
        page.set_default_timeout(TIMEOUT_MS)
        page.errors = []
        page.on("pageerror", lambda error: page.errors.append(str(error)))
        page.on(
            "console",
            lambda said: said.type == "error" and page.errors.append(f"{said.text} ({said.location['url']})"),
        )
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


def fit(page: Any) -> None:
    page.evaluate("() => { app.canvas.deselectAll(); app.extensionManager.command.execute('Comfy.Canvas.FitView') }")


def add_from_search(page: Any, name: str) -> None:
    """A node, as a person adds it to an empty graph: open the search, type its name, take what is offered first."""
    page.evaluate("() => { app.graph.clear(); app.canvas.ds.scale = 1; app.canvas.ds.offset = [0, 0] }")
    # A text field of a node that is gone stays for a moment, and takes the clicks.
    page.wait_for_function("([x, y]) => document.elementFromPoint(x, y) === app.canvas.canvas", arg=list(EMPTY))
    page.mouse.move(*EMPTY)
    page.evaluate("() => app.extensionManager.command.execute('Workspace.SearchBox.Toggle')")
    page.get_by_placeholder("Search Nodes").fill(name)
    page.locator("[role=option]").filter(has_text=name).first.wait_for()
    page.keyboard.press("Enter")
    page.wait_for_function("() => app.graph._nodes.length === 1")
    page.locator(".p-dialog-mask").wait_for(state="detached")  # it fades away, and takes clicks until then


def click_title(page: Any) -> None:
    """Select the graph's first node with the mouse."""
    x, y = page.evaluate("""() => {
        const [x, y] = app.graph._nodes[0].pos, {scale, offset} = app.canvas.ds
        const box = app.canvas.canvas.getBoundingClientRect()
        return [box.left + (x + 80 + offset[0]) * scale, box.top + (y - 15 + offset[1]) * scale]
    }""")
    page.mouse.click(x, y)


def press_run(page: Any) -> None:
    """Queue the graph by the Run button and wait for its end. RuntimeError: ComfyUI's words where it failed."""
    page.evaluate("""() => {
        window.ended = null
        for (const kind of ["execution_success", "execution_error"])
            app.api.addEventListener(kind, event => { window.ended ??= event.detail.exception_message ?? "done" }, {once: true})
    }""")
    for toast in page.locator(".p-toast-close-button").all():  # they lie over the button
        toast.click()
    page.get_by_test_id("queue-button").click()
    page.wait_for_function("() => window.ended !== null", timeout=10 * TIMEOUT_MS)
    if (said := page.evaluate("() => window.ended")) != "done":
        raise RuntimeError(said)
