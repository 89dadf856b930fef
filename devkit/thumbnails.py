"""The pictures on the template browser's cards: a workflow as the frontend draws it, and below what its branches make of the
demo model, by a run of the same graph."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from . import browser, client, graph
from .demo_model import on_demo_model
from .recipes.foreign import FOREIGN
from .server import Server

SIDE, MARGIN, LABEL, QUALITY = 400, 8, 18, 80
PAPER, INK = (24, 24, 26), (215, 215, 215)
VIDEO = ("SaveAnimatedWEBP",)  # the demo model draws none
BOUNDS = """() => {
    const {scale, offset} = app.canvas.ds, all = app.graph._groups.map(group => Array.from(group._bounding))
    const box = app.canvas.canvas.getBoundingClientRect()
    const left = Math.min(...all.map(b => b[0])), top = Math.min(...all.map(b => b[1]))
    const right = Math.max(...all.map(b => b[0] + b[2])), bottom = Math.max(...all.map(b => b[1] + b[3]))
    return {x: box.left + (left + offset[0]) * scale, y: box.top + (top + offset[1]) * scale,
            width: (right - left) * scale, height: (bottom - top) * scale}
}"""
Labelled = tuple[str, Image.Image]


def draw(server: Server, workflows: Sequence[Path]) -> None:
    """Write <name>.jpg beside each workflow. A calibration must come before the workflow that uses it."""
    known: Any = {**FOREIGN, **server.get("/object_info")}
    opened = {path: json.loads(path.read_text(encoding="utf-8")) for path in workflows}
    made = {path: _pictures(server, graph.to_api(saved, known)) for path, saved in opened.items()}
    with browser.frontend(server.url, 3000, 2200) as page:
        page.evaluate("() => app.extensionManager.setting.set('Comfy.Minimap.Visible', false)")
        page.evaluate(
            "foreign => Promise.all(foreign.map(info => app.registerNodeDef(info.name, info)))", [*FOREIGN.values()]
        )
        for path, saved in opened.items():
            browser.load(page, saved)
            browser.fit(page)
            page.wait_for_timeout(1200)
            drawn = Image.open(io.BytesIO(page.screenshot(clip=page.evaluate(BOUNDS)))).convert("RGB")
            card(drawn, made[path]).save(path.with_suffix(".jpg"), quality=QUALITY, optimize=True)
            print(f"Wrote {path.with_suffix('.jpg')}")


def card(drawn: Image.Image, pictures: Sequence[Labelled]) -> Image.Image:
    """The graph, and below it the labelled pictures side by side."""
    canvas = Image.new("RGB", (SIDE, SIDE), PAPER)
    pen, font = ImageDraw.Draw(canvas), ImageFont.load_default(13)
    room = SIDE
    if pictures:
        width = (SIDE - MARGIN * (len(pictures) + 1)) // len(pictures)
        below = [picture.resize((width, picture.height * width // picture.width)) for _, picture in pictures]
        room -= below[0].height + LABEL + MARGIN
        for i, (label, _) in enumerate(pictures):
            x = MARGIN + i * (width + MARGIN)
            pen.text((x, room), label, INK, font)
            canvas.paste(below[i], (x, room + LABEL))
    drawn.thumbnail((SIDE - 2 * MARGIN, room - 2 * MARGIN), Image.Resampling.LANCZOS)
    canvas.paste(drawn, ((SIDE - drawn.width) // 2, (room - drawn.height) // 2))
    return canvas


def _pictures(server: Server, workflow: client.Workflow) -> list[Labelled]:
    """Of each Save Image node the batch as one picture; of a calibration its report."""
    kinds = {name: node["class_type"] for name, node in workflow.items()}
    if any(kind in VIDEO for kind in kinds.values()):
        return []
    result = client.run(server.url, on_demo_model(workflow), timeout=900)
    made = []
    for name, kind in kinds.items():
        if kind not in ("SaveImage", "GimbalQDriftReport"):
            continue
        entries = [Image.open(io.BytesIO(client.image(server.url, entry))) for entry in result.images(name)]
        label = workflow[name]["inputs"].get("filename_prefix", "report").removeprefix("gimbal/")
        made.append((label, _sheet([entry.convert("RGB") for entry in entries])))
    (first, picture), *rest = made[-2:]  # of three, the first is what the others start from
    return [(f"demo model: {first}", picture), *rest]


def _sheet(pictures: Sequence[Image.Image]) -> Image.Image:
    """A batch in rows of three, or the one picture there is."""
    columns = min(3, len(pictures))
    width, height = pictures[0].size
    sheet = Image.new("RGB", (columns * width, -(-len(pictures) // columns) * height), PAPER)
    for i, picture in enumerate(pictures):
        sheet.paste(picture, (i % columns * width, i // columns * height))
    return sheet
