"""ComfyUI's own frontend in a headless Chromium. Needs playwright, and a Chromium on the machine.

Everything here works on frontends 1.32.9 to 1.58.1: it uses the app's API, its commands, roles, and the test ids that both have.
"""

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
EMPTY = (900, 400)  # a place in the middle of the canvas
READY = "() => Boolean(window.app?.graph && LiteGraph.registered_node_types.GimbalMicrograin)"
VUE_NODES = "Comfy.VueNodes.Enabled"
PATIENCE = 180_000  # milliseconds, for what takes a second on a core of its own
RUN_PATIENCE = 1_800_000
DIALOGS = "[role=dialog]:visible, .p-dialog:visible"
# What lies over the canvas until it is closed: toasts, and the summary of missing models.
CLOSERS = ".p-toast-close-button, [data-testid=toast-close], [data-testid=error-overlay-dismiss]"
MISSING = ".p-dialog:visible, [data-testid=error-overlay]"
# Boxes with their titles, in the graph's units: as canvas nodes say, or as Vue nodes lie in the page.
BOXES = """vue => app.graph._nodes.map(node => {
    const name = `${node.id} ${node.type}`
    if (!vue) return [name, ...node.boundingRect]
    const {scale, offset} = app.canvas.ds, canvas = app.canvas.canvas.getBoundingClientRect()
    const box = document.querySelector(`[data-node-id="${node.id}"]`)?.getBoundingClientRect()
    return box && [name, (box.left - canvas.left) / scale - offset[0], (box.top - canvas.top) / scale - offset[1],
                   box.width / scale, box.height / scale]
})"""


def chromium() -> str | None:
    return next(filter(None, map(shutil.which, NAMES)), None)


@contextmanager
def browser() -> Iterator[Any]:
    """playwright's browser, for `opened`."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=chromium(), args=list(FLAGS))
        yield running
        running.close()


def opened(running: Any, url: str, width: int = 1600, height: int = 1000) -> Any:
    """A page (playwright's) with the frontend ready for use. `page.errors`: what it threw or logged as an error."""
    page = running.new_page(viewport={"width": width, "height": height})
    page.set_default_timeout(PATIENCE)
    page.errors = []
    page.on("pageerror", lambda error: page.errors.append(str(error)))
    page.on(
        "console",
        lambda said: said.type == "error" and page.errors.append(f"{said.text} ({said.location['url']})"),
    )
    page.goto(url)
    page.wait_for_function(READY)
    page.wait_for_timeout(2000)  # the frontend has no word for "all set"
    return page


@contextmanager
def frontend(url: str, width: int = 1600, height: int = 1000) -> Iterator[Any]:
    """One page in a browser of its own."""
    with browser() as running:
        yield opened(running, url, width, height)


def render(page: Any, vue: bool) -> bool:
    """Draw nodes on the canvas or as Vue nodes ("Nodes 2.0"); False: this frontend has no Vue nodes."""
    shown = page.evaluate("name => app.extensionManager.setting.get(name)", VUE_NODES)
    if shown is None:
        return not vue
    if shown != vue:
        page.evaluate("([name, vue]) => app.extensionManager.setting.set(name, vue)", [VUE_NODES, vue])
        page.wait_for_timeout(500)
    return True


def is_vue(page: Any) -> bool:
    return bool(page.evaluate("name => app.extensionManager.setting.get(name)", VUE_NODES))


def tidy(page: Any) -> None:
    """An empty graph with nothing over it, whatever was open."""
    if page.locator(DIALOGS).count():
        page.keyboard.press("Escape")
        page.wait_for_timeout(500)
    if page.locator(DIALOGS).count():
        page.reload()
        page.wait_for_function(READY)
        page.wait_for_timeout(2000)
    page.evaluate("""() => {
        const bar = app.extensionManager.sidebarTab
        if (bar?.activeSidebarTabId) bar.toggleSidebarTab(bar.activeSidebarTabId)
        app.graph.clear(); app.canvas.ds.scale = 1; app.canvas.ds.offset = [0, 0]
    }""")
    close_messages(page)


def close_messages(page: Any) -> None:
    """In the page itself: a message may go away by itself between being found and being clicked."""
    page.wait_for_function(
        """selector => {
            const shown = Array.from(document.querySelectorAll(selector)).filter(e => e.getClientRects().length)
            shown.forEach(closer => closer.click())
            return !shown.length
        }""",
        arg=CLOSERS,
    )


def load(page: Any, workflow: dict) -> None:
    """Open a saved workflow and wait until its nodes are drawn; missing model files are not asked for."""
    page.evaluate(
        "workflow => app.loadGraphData(workflow, true, true, null, {showMissingModelsDialog: false})", workflow
    )
    page.wait_for_function("count => app.graph._nodes.length === count", arg=len(workflow["nodes"]))
    boxes(page)


def boxes(page: Any) -> list[list]:
    """[name, x, y, width, height] of each node, once they no longer change."""
    before: list | None = None
    for _ in range(100):
        now = page.evaluate(BOXES, is_vue(page))
        if now == before and all(now):
            return now
        before = now
        page.wait_for_timeout(300)
    raise RuntimeError(f"the nodes do not come to rest; last seen: {before}")


def missing_models(page: Any) -> str:
    """What the frontend says of missing model files: in a dialog, or in a panel behind a message."""
    page.locator(MISSING).first.wait_for()
    more = page.get_by_test_id("error-overlay-see-errors")
    if not more.count():
        return page.locator(".p-dialog").inner_text()
    more.click()
    return page.get_by_test_id("properties-panel").inner_text()


def fit(page: Any) -> None:
    page.evaluate("() => { app.canvas.deselectAll(); app.extensionManager.command.execute('Comfy.Canvas.FitView') }")


def add_from_search(page: Any, name: str) -> None:
    """A node, as a person adds it to an empty graph: open the search, type its name, take what is offered first."""
    page.evaluate("() => { app.graph.clear(); app.canvas.ds.scale = 1; app.canvas.ds.offset = [0, 0] }")
    # A text field of a node that is gone stays for a moment, and takes the clicks.
    page.wait_for_function("([x, y]) => document.elementFromPoint(x, y)?.tagName !== 'TEXTAREA'", arg=list(EMPTY))
    page.mouse.move(*EMPTY)
    page.evaluate("() => app.extensionManager.command.execute('Workspace.SearchBox.Toggle')")
    page.locator("input[role=combobox]:focus").fill(name)
    page.locator("[role=option]").filter(has_text=name).first.wait_for()
    page.keyboard.press("Enter")
    page.wait_for_function("() => app.graph._nodes.length === 1")
    page.locator(DIALOGS).first.wait_for(state="detached")  # it fades away, and takes clicks until then
    if page.evaluate("() => Boolean(app.graph._nodes[0].flags.ghost)"):  # it hangs on the mouse until a click
        page.mouse.click(*EMPTY)
        page.wait_for_function("() => !app.graph._nodes[0].flags.ghost")
    boxes(page)


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
    close_messages(page)  # they lie over the button
    page.get_by_test_id("queue-button").click()
    page.wait_for_function("() => window.ended !== null", timeout=RUN_PATIENCE)
    if (said := page.evaluate("() => window.ended")) != "done":
        raise RuntimeError(said)
