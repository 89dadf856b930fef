"""The template browser's cards, workflows as pictures that can be dragged into ComfyUI, and README's pictures: what each branch of
a graph makes of the letters model, labelled, by a run of the same graph."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from . import client, graph
from .demo_model import on_demo_model
from .paths import ROOT
from .recipes.foreign import FOREIGN
from .server import Server

SIDE, MARGIN, LABEL, FOOT, LARGEST = 400, 8, 22, 24, 40_000
PAPER, INK, FAINT = (24, 24, 26), (235, 235, 235), (165, 165, 165)
COLUMNS = {2: 3, 3: 4}  # letters in a band, by the number of bands, so that they fill the card
# What README shows of them.
SHEETS = {
    "Try it - Bring colours back": "try_it_colours",
    "Try it - Calm burnt guidance": "try_it_guidance",
}
GRAPHS = ROOT / "docs" / "workflows"
Labelled = tuple[str, Sequence[Image.Image]]


def draw(server: Server, workflows: Sequence[Path]) -> None:
    """Write <name>.jpg beside each workflow, and docs/workflows/<name>.png, which holds the workflow. A calibration must come
    before the workflow that uses it."""
    known: Any = {**FOREIGN, **server.get("/object_info")}
    GRAPHS.mkdir(parents=True, exist_ok=True)
    for path in workflows:
        saved = json.loads(path.read_text(encoding="utf-8"))
        made = card(_bands(server, path.stem, saved, known))
        path.with_suffix(".jpg").write_bytes(packed(made))
        save_to_drag(made, path.stem, saved)
        print(f"Wrote {path.with_suffix('.jpg')} and {GRAPHS / path.stem}.png", flush=True)


def packed(picture: Image.Image) -> bytes:
    """As JPEG, at the best quality that keeps it below LARGEST bytes."""
    for quality in range(85, 20, -5):
        made = io.BytesIO()
        picture.save(made, "JPEG", quality=quality, optimize=True)
        if made.tell() < LARGEST:
            break
    return made.getvalue()


def save_to_drag(picture: Image.Image, name: str, saved: dict) -> None:
    """As a PNG with the workflow in it, where ComfyUI's frontend looks for one."""
    about = PngInfo()
    about.add_text("workflow", json.dumps(saved))
    picture.save(GRAPHS / f"{name}.png", pnginfo=about, optimize=True)


def renew(name: str, saved: dict) -> None:
    """Put the workflow into its picture again, if that was drawn: places and notes may change without a new run."""
    path = GRAPHS / f"{name}.png"
    if path.exists():
        with Image.open(path) as picture:
            picture.load()
        save_to_drag(picture, name, saved)


def _bands(server: Server, name: str, saved: dict, known: dict) -> list[Labelled]:
    """What each decoder shows, under its sampler's title, or its own; of a calibration alone its report."""
    swapped = on_demo_model(graph.to_api(saved, known))
    decoders = sorted((n for n, node in swapped.items() if node["class_type"] == "GimbalDemoDecode"), key=int)
    for decoder in decoders:
        swapped[f"shown {decoder}"] = {"class_type": "PreviewImage", "inputs": {"images": [decoder, 0]}}
    result = client.run(server.url, swapped, timeout=3600)  # a calibration on a busy core takes minutes
    if name in SHEETS:
        (sheet,) = _opened(server, result, _of_kind(swapped, "SaveImage"))
        sheet.save(ROOT / "docs" / "images" / f"{SHEETS[name]}.png", optimize=True)
    if not decoders:
        return [("the report", _opened(server, result, _of_kind(swapped, "GimbalQDriftReport")))]
    titles = {str(node["id"]): node["title"] for node in saved["nodes"] if "title" in node}
    samplers = {decoder: swapped[decoder]["inputs"]["latent"][0] for decoder in decoders}
    return [(titles.get(samplers[d]) or titles[d], _opened(server, result, f"shown {d}")) for d in decoders]


def card(bands: Sequence[Labelled]) -> Image.Image:
    """The bands above one another, each below its label; a single picture as large as fits."""
    canvas = Image.new("RGB", (SIDE, SIDE), PAPER)
    pen, large, small = ImageDraw.Draw(canvas), ImageFont.load_default(17), ImageFont.load_default(13)
    pen.text((MARGIN, SIDE - FOOT + 2), "a run of this graph on Gimbal's small letters model", FAINT, small)
    room = (SIDE - FOOT) // len(bands) - LABEL - MARGIN
    for line, (label, pictures) in enumerate(bands):
        y = MARGIN + line * (room + LABEL + MARGIN)
        pen.text((SIDE - MARGIN, y - 4), label, INK, large, anchor="ra")  # newer frontends put a badge at the left
        band = _band(pictures, COLUMNS.get(len(bands), 1))
        band.thumbnail((SIDE - 2 * MARGIN, room), Image.Resampling.LANCZOS)
        canvas.paste(band, (MARGIN, y + LABEL))
    return canvas


def _of_kind(workflow: client.Workflow, kind: str) -> str:
    (name,) = (name for name, node in workflow.items() if node["class_type"] == kind)
    return name


def _opened(server: Server, result: client.Result, node: str) -> list[Image.Image]:
    found = (Image.open(io.BytesIO(client.image(server.url, entry))) for entry in result.images(node))
    return [picture.convert("RGB") for picture in found]


def _band(pictures: Sequence[Image.Image], columns: int) -> Image.Image:
    """The first of them side by side, enlarged four times as they are."""
    shown = pictures[:columns]
    if len(shown) == 1:
        return shown[0]
    side = 4 * shown[0].width
    band = Image.new("RGB", (len(shown) * (side + 4 * MARGIN) - 4 * MARGIN, side), PAPER)
    for i, picture in enumerate(shown):
        band.paste(picture.resize((side, side), Image.Resampling.NEAREST), (i * (side + 4 * MARGIN), 0))
    return band
