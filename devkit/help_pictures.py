"""Make the pictures of web/docs/ and the registry's banner: the demo model with the real nodes, at one seed throughout.

    .dev/venv/bin/python devkit/help_pictures.py --comfyui .dev/comfyui/0.3.75

Rows carry no words; the pages say what they show, in each language.
"""

from __future__ import annotations

import argparse
import io
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from devkit import base, client
from devkit.graph import is_widget
from devkit.server import Server

PICTURES = ROOT / "web" / "docs" / "pictures"
TEXT, SEED = "GIMBAL", 7
CELL, GAP, WIDTH, LARGEST = 112, 4, 700, 40_000
BANNER = (1260, 540)
DARK, PALE, FAINT = (24, 28, 40), (244, 241, 222), (150, 152, 160)  # of the icon
STRONGER = "paper's shares: 2/3 to 1.6 of cfg"  # of SAMG
CORRECTIONS = ("drift", "moments", "layers and moments")
TILES = {"tile": 8, "stride": 4}  # of 16 x 16 latent positions


class Graph:
    """A graph in the API's form that grows by calls, on the demo model. Options that are not given have their defaults."""

    def __init__(self, known: dict):
        self.known = known  # the server's /object_info
        self.nodes: client.Workflow = {}
        self.shown: list[str] = []
        self.model = self.add("UNETLoader", unet_name="gimbal_letters_fp16.safetensors")
        self.letters = self.add("GimbalDemoLetters", text=TEXT)

    def add(self, kind: str, **inputs: object) -> list:
        """The new node's first output."""
        number = str(len(self.nodes) + 1)
        self.nodes[number] = {"class_type": kind, "inputs": {**self._defaults(kind), **inputs}}
        return [number, 0]

    def sampled(self, model: list, cfg: float, steps: int) -> list:
        positive, negative, latent = ([self.letters[0], slot] for slot in range(3))
        conds = {"positive": positive, "negative": negative, "latent_image": latent}
        return self.add("KSampler", model=model, seed=SEED, steps=steps, cfg=cfg, scheduler="simple", **conds)

    def row(self, latent: list) -> None:
        self.show(self.add("GimbalDemoDecode", latent=latent))

    def show(self, image: list) -> None:
        self.shown.append(self.add("PreviewImage", images=image)[0])

    def _defaults(self, kind: str) -> dict:
        found = {}
        for name, (type_, *rest) in self.known[kind]["input"].get("required", {}).items():
            told = rest[0] if rest else {}
            if is_widget(type_, told):
                choices = type_ if isinstance(type_, list) else told.get("options", [None])
                found[name] = told.get("default", choices[0])
        return found


def micrograin(graph: Graph) -> None:
    graph.row(graph.sampled(graph.model, 9.0, 8))
    for form, q in (("hard", 0.001), ("hard", 0.01), ("tanh", 0.001)):
        patched = graph.add("GimbalMicrograin", model=graph.model, form=form, q_low=q, q_high=1 - q)
        graph.row(graph.sampled(patched, 9.0, 8))


def micrograin_latent(graph: Graph) -> None:
    plain = graph.sampled(graph.model, 9.0, 8)
    graph.row(plain)
    for form, q in (("hard", 0.01), ("hard", 0.05)):
        graph.row(graph.add("GimbalMicrograinLatent", latent=plain, form=form, q_low=q, q_high=1 - q))


def aqclip(graph: Graph) -> None:
    graph.row(graph.sampled(graph.model, 9.0, 8))
    for corridor in ("gentle", "strong", "paper"):
        patched = graph.add("GimbalAQClip", model=graph.model, corridor=corridor, **TILES)
        graph.row(graph.sampled(patched, 9.0, 8))


def aqclip_latent(graph: Graph) -> None:
    plain = graph.sampled(graph.model, 9.0, 8)
    graph.row(plain)
    for corridor in ("gentle", "strong"):
        graph.row(graph.add("GimbalAQClipLatent", latent=plain, corridor=corridor, **TILES))


def confidence(kind: str) -> Callable[[Graph], None]:
    def watched(graph: Graph) -> None:
        model = graph.add("GimbalConfidence", model=graph.model, confidence=kind, **TILES)
        latent = graph.sampled(model, 3.0, 20)
        graph.show(graph.add("GimbalConfidencePreview", latent=latent, model=model, columns=4, sample=2))

    return watched


def samg(graph: Graph) -> None:
    graph.row(graph.sampled(graph.model, 3.0, 20))
    patched = graph.add("GimbalSAMG", model=graph.model, preset=STRONGER)
    for cfg in (2.0, 3.0):
        graph.row(graph.sampled(patched, cfg, 20))


def stabilise(graph: Graph) -> None:
    graph.row(graph.sampled(graph.model, 9.0, 10))
    graph.row(graph.sampled(graph.add("GimbalStabilise", model=graph.model), 9.0, 10))


def guidance_preview(graph: Graph) -> None:
    patched = graph.add("GimbalSAMG", model=graph.model, preset=STRONGER)
    latent = graph.sampled(patched, 2.0, 20)
    graph.show(graph.add("GimbalGuidancePreview", latent=latent, model=patched, columns=4, sample=2))


def equal_strength(graph: Graph) -> None:
    positive, negative, latent = ([graph.letters[0], slot] for slot in range(3))
    compared = graph.add(
        "GimbalEqualStrength",
        model=graph.add("GimbalAQClip", model=graph.model, corridor="strong", **TILES),
        plain_model=graph.model,
        positive=positive,
        negative=negative,
        latent_image=latent,
        seed=SEED,
        steps=8,
        cfg=9.0,
        scheduler="simple",
    )
    for slot in range(2):
        graph.row([compared[0], slot])
    graph.row(graph.sampled(graph.model, 9.0, 8))


def simulate_quantization(graph: Graph) -> None:
    for model in (graph.model, *(quantized(graph, preset) for preset in ("W8A8", "W4A4", "W3A4"))):
        graph.row(graph.sampled(model, 3.0, 20))


def precision_plan(graph: Graph) -> None:
    rounded = quantized(graph, "W4A4")
    planned = (graph.add("GimbalPrecisionPlan", model=rounded, first_steps=first) for first in (3, 6))
    for model in (graph.model, rounded, *planned):
        graph.row(graph.sampled(model, 3.0, 20))


def qdrift(graph: Graph) -> None:
    stats, coarse = calibrated(graph), quantized(graph, "W3A4")
    corrected = (graph.add("GimbalQDrift", model=coarse, stats=stats, correction=c) for c in CORRECTIONS)
    for model in (graph.model, coarse, *corrected):
        graph.row(graph.sampled(model, 3.0, 20))


def report(graph: Graph) -> None:
    plots = 2
    graph.show([graph.add("GimbalQDriftReport", stats=calibrated(graph))[0], plots])


def quantized(graph: Graph, preset: str) -> list:
    return graph.add("GimbalSimulateQuantization", model=graph.model, preset=preset)


def calibrated(graph: Graph) -> list:
    positive, negative, latent = ([graph.letters[0], slot] for slot in range(3))
    return graph.add(
        "GimbalQDriftCalibrate",
        full_model=graph.model,
        quantized_model=quantized(graph, "W3A4"),
        latent=latent,
        positive=positive,
        negative=negative,
        cfg=3.0,
        first_seed=100,
        filename="help",
    )


RECIPES: dict[str, Callable[[Graph], None]] = {
    "GimbalMicrograin": micrograin,
    "GimbalMicrograinLatent": micrograin_latent,
    "GimbalAQClip": aqclip,
    "GimbalAQClipLatent": aqclip_latent,
    "GimbalConfidence": confidence("gradient"),
    "GimbalConfidencePreview": confidence("attention"),
    "GimbalSAMG": samg,
    "GimbalStabilise": stabilise,
    "GimbalGuidancePreview": guidance_preview,
    "GimbalEqualStrength": equal_strength,
    "GimbalSimulateQuantization": simulate_quantization,
    "GimbalPrecisionPlan": precision_plan,
    "GimbalQDrift": qdrift,
    "GimbalQDriftReport": report,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--comfyui", type=Path, required=True)
    parser.add_argument("names", nargs="*", metavar="NAME", help="only these pictures, and no banner")
    args = parser.parse_args()
    PICTURES.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, Server(args.comfyui.resolve(), base.make(Path(folder))) as server:
        for name in args.names or RECIPES:
            save(composed(shown(server, RECIPES[name])), PICTURES / f"{name}.webp")
        if not args.names:
            rows = shown(server, micrograin)
            made = banner(rows[0], rows[2]).quantize(256)  # a third of the size
            made.save(ROOT / "docs" / "banner.png", optimize=True)


def shown(server: Server, recipe: Callable[[Graph], None]) -> list[list[Image.Image]]:
    """What the graph's previews show, in their order: a list of pictures each."""
    graph = Graph(server.get("/object_info"))
    recipe(graph)
    result = client.run(server.url, graph.nodes, timeout=3600)  # a calibration on a busy core takes minutes
    return [
        [Image.open(io.BytesIO(client.image(server.url, entry))).convert("RGB") for entry in result.images(node)]
        for node in graph.shown
    ]


def composed(rows: Sequence[Sequence[Image.Image]]) -> Image.Image:
    """Rows of letters above one another; a picture on its own only made smaller."""
    if len(rows) == len(rows[0]) == 1:
        picture = rows[0][0]
        return picture.resize((WIDTH, round(WIDTH * picture.height / picture.width)), Image.Resampling.LANCZOS)
    width, height = (n * (CELL + GAP) - GAP for n in (len(rows[0]), len(rows)))
    canvas = Image.new("RGB", (width, height), (255, 255, 255))
    place(canvas, rows, (0, 0), CELL, GAP)
    return canvas


def place(
    canvas: Image.Image, rows: Sequence[Sequence[Image.Image]], at: tuple[int, int], cell: int, gap: int
) -> None:
    for down, row in enumerate(rows):
        for right, picture in enumerate(row):
            tile = picture.resize((cell, cell), Image.Resampling.LANCZOS)
            canvas.paste(tile, (at[0] + right * (cell + gap), at[1] + down * (cell + gap)))


def save(picture: Image.Image, path: Path) -> None:
    """As WebP, at the best quality that keeps the archive small."""
    for quality in range(90, 20, -5):
        packed = io.BytesIO()
        picture.save(packed, "WEBP", quality=quality, method=6)
        if packed.tell() < LARGEST:
            break
    path.write_bytes(packed.getvalue())
    print(f"Wrote {path}, {picture.width} x {picture.height}, {packed.tell()} bytes at quality {quality}")


def banner(plain: Sequence[Image.Image], steady: Sequence[Image.Image]) -> Image.Image:
    canvas = Image.new("RGB", BANNER, DARK)
    draw = ImageDraw.Draw(canvas)
    icon = Image.open(ROOT / "docs" / "icon.png").convert("RGB").resize((150, 150), Image.Resampling.LANCZOS)
    canvas.paste(icon, (48, 28))
    draw.text((226, 34), "Gimbal", PALE, ImageFont.load_default(84))
    draw.text(
        (230, 136),
        "Keeps diffusion sampling level: training-free nodes for ComfyUI.",
        FAINT,
        ImageFont.load_default(29),
    )
    small, cell, gap, left = ImageFont.load_default(25), 144, 12, 312
    for line, (name, note) in enumerate((("plain", "guidance 9, 8 steps"), ("Micrograin 1 %", "the same seed"))):
        y = 214 + line * (cell + gap)
        draw.text((48, y + 38), name, PALE, small)
        draw.text((48, y + 74), note, FAINT, ImageFont.load_default(21))
    place(canvas, [plain, steady], (left, 214), cell, gap)
    return canvas


if __name__ == "__main__":
    main()
