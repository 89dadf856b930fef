"""What several recipes share: prompts, the pictures at the end, and where everything stands."""

from __future__ import annotations

from collections.abc import Sequence

from ..author import Node, Row, Workflow

PROMPT = "photo of an old lighthouse on a cliff at dusk, waves breaking, detailed stone, warm lamp"
NEGATIVE = "blurry, oversaturated, low quality"
SEED, BURNT = 7, 12.0  # BURNT: a cfg at which the clamps have visible work
# Of Micrograin, for a difference at the first glance: at its default it takes off 0.1 %.
STRONGER = {"form": "smooth", "q_low": 0.01, "q_high": 0.99}
PICTURE, STRIP, NOTE, RESULT = (340, 430), (780, 460), 340, (900, 560)


def prompts(flow: Workflow, clip: tuple[Node, int], prompt: str = PROMPT, negative: str = NEGATIVE) -> list[Node]:
    return [
        flow.node("CLIPTextEncode", caption="Positive prompt", text=prompt, clip=clip),
        flow.node("CLIPTextEncode", caption="Negative prompt", text=negative, clip=clip),
    ]


def dials(flow: Workflow, cfg: float) -> tuple[Node, Node]:
    """Seed and cfg for all samplers that are compared, so that they never differ."""
    return (
        flow.node("PrimitiveInt", caption="Seed of both", value=SEED),
        flow.node("PrimitiveFloat", caption="cfg of both", value=cfg),
    )


def picture(flow: Workflow, sampler: Node, vae: tuple[Node, int], name: str, output: int = 0) -> tuple[Node, Node]:
    """Decoded and saved: what stands under a branch's sampler, and its last column. output: the sampler's."""
    caption = "" if "title" in sampler.saved else name.capitalize()  # so that the pictures' labels tell them apart
    decoded = flow.node("VAEDecode", caption=caption, samples=sampler[output], vae=vae)
    return decoded, flow.node(
        "SaveImage", caption=name.capitalize(), images=decoded[0], filename_prefix=f"gimbal/{name}", size=PICTURE
    )


def film(flow: Workflow, sampler: Node, vae: tuple[Node, int], name: str) -> tuple[Node, Node]:
    """The same for a video, shown on the node."""
    decoded = flow.node("VAEDecode", samples=sampler[0], vae=vae)
    options = {"filename_prefix": f"gimbal/{name}", "fps": 16.0, "size": (PICTURE[0], 540)}
    return decoded, flow.node("SaveAnimatedWEBP", caption=name.capitalize(), images=decoded[0], **options)


def beside(flow: Workflow, *decoded: Node, words: str) -> tuple[str, Row]:
    """The branches' pictures next to each other in one, as the group and the columns that `compare` takes."""
    first, *others = decoded
    stitched = []
    for other in others:
        left = (stitched or [first])[-1]
        options = {"direction": "right", "spacing_width": 8}
        stitched.append(flow.node("ImageStitch", image1=left[0], image2=other[0], **options))
    shown = flow.node("PreviewImage", caption=words, images=stitched[-1][0], size=RESULT)
    return "Compare", [stitched, [shown]]


def look(flow: Workflow, heading: str, first: str, *points: str, width: int = NOTE) -> Node:
    """The note of a workflow: what it compares, then what to look at and which values to try."""
    text = "\n".join([f"## {heading}", "", first, "", *(f"- {point}" for point in points)])
    shown = ["", first, *points]
    return flow.note("What to look at", text, width, 28 + _height(shown, width), _vue_height(shown, width))


def model_files(flow: Workflow, width: int = NOTE) -> Node:
    """Where the model files of the nodes so far come from and go to."""
    used = {m["name"]: m for node in flow.nodes for m in node.saved["properties"].get("models", ())}
    text = "\n".join(
        ["Or choose your own in the nodes above.", ""]
        + [f"- [{name}]({model['url']}) in `models/{model['directory']}`" for name, model in used.items()]
    )
    shown = [f"{name} in models/{model['directory']}" for name, model in used.items()]
    return flow.note("Model files", text, width, _height(["", *shown], width), _vue_height(["", *shown], width))


def compare(
    flow: Workflow,
    load: Row,
    note: Node,
    plain: tuple[str, Row],
    stabilised: tuple[str, Row],
    result: tuple[str, Row],
    before: tuple[str, Row] | None = None,
    below: Row = (),
) -> None:
    """Loaders on the left; right of them what became of both branches, where it is seen at once, the plain one below, and the
    stabilised one below that.

    plain, stabilised: a title and the columns; so is `before`, which both share. The plain branch leaves its first column
    empty; `below` belongs to the stabilised branch. result: of `beside`; the note stands with it.
    """
    x = flow.grid(load)
    if before:
        x = flow.grid(before[1], at=(x, 0))
        flow.group(before[0], _all(before[1]))
    (plain_title, above), (title, row) = plain, stabilised
    stitched, shown = result[1]
    flow.grid([[note, *stitched], shown], [[], *above], row, *([below] if below else []), at=(x, 0))
    flow.group(result[0], [note, *stitched, *shown], "gimbal")
    flow.group("Load", _all(load), "load")
    flow.group(plain_title, _all(above))
    flow.group(title, _all(row) + _all(below), "gimbal")


def clamped(
    flow: Workflow,
    model: Node,
    load: list[Node],
    common: dict,
    vae: tuple[Node, int],
    points: Sequence[str],
    draw=None,
) -> None:
    """Plain against AQClip and Micrograin at one seed and cfg. common: both samplers' inputs but the model. draw: `picture`
    or `film`."""
    draw = draw or picture
    plain = flow.node("KSampler", caption="Plain", model=model[0], **common)
    plain_image, plain_save = draw(flow, plain, vae, "plain")
    aqclip = flow.node("GimbalAQClip", model=model[0], corridor="gentle")
    grain = flow.node("GimbalMicrograin", model=aqclip[0], **STRONGER)
    sampler = flow.node("KSampler", caption="AQClip and Micrograin", model=grain[0], **common)
    image, save = draw(flow, sampler, vae, "stabilised")
    note = look(
        flow,
        "Plain against stabilised",
        "Same seed, and more guidance than the model takes. **AQClip** keeps each tile of the latent in a corridor, "
        "**Micrograin** takes off the last 1 %.",
        *points,
    )
    compare(
        flow,
        _columns([*load, model_files(flow)]),
        note,
        ("Plain", [[plain, plain_image], [plain_save]]),
        ("Stabilised: QSilk", [[aqclip, grain], [sampler, image], [save]]),
        beside(flow, plain_image, image, words="Left: plain. Right: AQClip and Micrograin"),
    )


def _columns(load: list[Node], most: int = 7) -> Row:
    """Loaders in one column, or in two where they are many."""
    if len(load) <= most:
        return [load]
    half = -(-len(load) // 2)
    return [load[:half], load[half:]]


def _all(columns: Row) -> list[Node]:
    return [node for column in columns for node in column]


def _height(paragraphs: Sequence[str], width: int) -> int:
    """Of a note, in the frontend's small font: 4.8 pixels a letter, 11 a line."""
    return 62 + 11 * _lines(paragraphs, width, 4.8)


def _vue_height(paragraphs: Sequence[str], width: int) -> int:
    """Of a note as Vue nodes draw it, by the largest measured on frontends 1.32.9 and 1.58.1; it grows to its text."""
    return 48 + 16 * (_lines(paragraphs, width, 5.4) + len(paragraphs))


def _lines(paragraphs: Sequence[str], width: int, letter: float) -> int:
    per_line = int((width - 64) / letter)
    return sum(max(1, -(-len(paragraph) // per_line)) for paragraph in paragraphs)
