"""What runs at once: on the letters model that ships with the pack, without a download."""

from __future__ import annotations

from collections.abc import Sequence

from ..author import GAP, TITLE, Node, Workflow
from .parts import BURNT, SEED, look

MODEL = "gimbal_letters_fp16.safetensors"
TEXT = "GIMBAL"
BROKEN = "W4A4"


def four_bits(flow: Workflow) -> None:
    model, letters, seed, cfg = load(flow, 3.0)
    rounded = flow.node("GimbalSimulateQuantization", caption=f"Round it: {BROKEN}", model=model[0], preset=BROKEN)
    as_used = {"positive": letters[0], "negative": letters[1], "cfg": cfg[0], "steps": 12}
    as_used |= {"sampler_name": "euler", "scheduler": "simple"}
    stats = flow.node(
        "GimbalQDriftCalibrate",
        caption="Calibrate once",
        full_model=model[0],
        quantized_model=rounded[0],
        latent=letters[2],
        first_seed=100,
        runs=12,
        held_out=2,
        filename="try_it_W4A4",
        size=(420, 0),
        **as_used,
    )
    drift = flow.node("GimbalQDrift", model=rounded[0], stats=stats[0])
    sampled = {**as_used, "latent_image": letters[2], "seed": seed[0]}
    samplers = [
        flow.node("KSampler", caption=name, model=made[0], **sampled)
        for name, made in (("Full precision", model), ("4 bits", rounded), ("4 bits, corrected", drift))
    ]
    note = look(
        flow,
        "Press Run",
        "A small model is rounded to 4 bits, and its colours go. **Q-Drift Calibrate** compares it with full precision once; "
        "**Quantization Fix** brings the colours back while it samples.",
        "Look at the last row against the first: same seed, same cfg.",
        "Type other letters (G I M B A L E K R S), or change the seed: one node feeds all three samplers.",
        "Try W3A4 and W8A8 in the node that rounds. At 8 bits there is nothing to repair, and the report says so.",
        "Strokes that the rounding broke stay broken. Only what is systematic comes back.",
    )
    labels = "full precision\n4 bits | as they are\n4 bits | with Q-Drift"
    result = sheet(flow, [sampler[0] for sampler in samplers], labels, f"One seed, {BROKEN}")
    _place(
        flow,
        [model, letters, seed, cfg, note],
        [[rounded, drift], [stats]],
        "Round, calibrate, correct",
        samplers,
        result,
    )


def burnt(flow: Workflow) -> None:
    model, letters, seed, cfg = load(flow, BURNT)
    grain = flow.node("GimbalMicrograin", model=model[0], form="smooth", q_low=0.01, q_high=0.99)
    aqclip = flow.node("GimbalAQClip", model=model[0], corridor="strong", confidence="attention", tile=8, stride=4)
    common = {"positive": letters[0], "negative": letters[1], "latent_image": letters[2], "seed": seed[0], "steps": 8}
    common |= {"cfg": cfg[0], "sampler_name": "euler", "scheduler": "simple"}
    samplers = [
        flow.node("KSampler", caption=name, model=made[0], **common)
        for name, made in (("Plain", model), ("Micrograin", grain), ("AQClip", aqclip))
    ]
    note = look(
        flow,
        "Press Run",
        "Guidance 12 is too much for this small model: colours burn, strokes fray. **Micrograin** takes off the most extreme "
        "values of each step; **AQClip** keeps each tile in a corridor around its mean.",
        "Look at flat grounds with blocks of a wrong colour, and at strokes that bleach or turn black.",
        "Change cfg or the seed: one node each feeds all three samplers. At cfg 3 little is left to do.",
        "Compare with plain sampling at cfg 8: part of what AQClip does is to lower contrast.",
    )
    labels = "plain\nMicrograin | smooth, 1 %\nAQClip | strong"
    result = sheet(flow, [sampler[0] for sampler in samplers], labels, "Guidance 12, one seed")
    _place(flow, [model, letters, seed, cfg, note], [[grain, aqclip]], "Micrograin and AQClip", samplers, result)


def better_or_weaker(flow: Workflow) -> None:
    model, letters, seed, cfg = load(flow, BURNT)
    aqclip = flow.node("GimbalAQClip", model=model[0], corridor="strong", confidence="attention", tile=8, stride=4)
    common = {"positive": letters[0], "negative": letters[1], "latent_image": letters[2], "seed": seed[0], "steps": 8}
    common |= {"cfg": cfg[0], "sampler_name": "euler", "scheduler": "simple"}
    plain = flow.node("KSampler", caption="Plain", model=model[0], **common)
    compared = flow.node("GimbalEqualStrength", model=aqclip[0], plain_model=model[0], **common)
    note = look(
        flow,
        "Press Run",
        "**AQClip** calms guidance 12, but a lower cfg does so too. **Compare at Equal Strength** finds the plain cfg whose "
        "latents have the same deviation, and samples it at the same seed.",
        "Compare the last two rows: the same strength, with AQClip and without. The node shows the cfg that it found.",
        "If the last row is as good, the cfg does the same for less.",
        "Connect another patch to the input *model*, and the model itself to *plain_model*.",
    )
    labels = "plain\nAQClip | strong, same cfg\nplain | at equal strength"
    result = sheet(flow, [plain[0], compared[0], compared[1]], labels, "Guidance 12, one seed")
    start = [model, letters, seed, cfg, note]
    _place(flow, start, [[aqclip]], "What is judged", [plain, compared], result)


def load(flow: Workflow, cfg: float) -> list[Node]:
    return [
        flow.node("UNETLoader", caption="Letters model (comes with Gimbal)", unet_name=MODEL),
        flow.node("GimbalDemoLetters", text=TEXT, rows=1),
        flow.node("PrimitiveInt", caption="Seed of all", value=SEED),
        flow.node("PrimitiveFloat", caption="cfg of all", value=cfg),
    ]


def sheet(
    flow: Workflow, latents: Sequence[tuple[Node, int]], labels: str, title: str
) -> tuple[list[Node], list[Node]]:
    """The latents' pictures, a labelled band each: decoders and sheet, and the picture to look at."""
    names = [line[:1].upper() + line[1:].replace(" | ", ", ") for line in labels.splitlines()]
    decoded = [
        flow.node("GimbalDemoDecode", caption=name, latent=latent, size=(220, 0))
        for name, latent in zip(names, latents, strict=True)
    ]
    bands = dict(zip(("first", "second", "third", "fourth"), (each[0] for each in decoded), strict=False))
    made = flow.node("GimbalDemoSheet", title=title, labels=labels, columns=len(TEXT), **bands)
    save = flow.node(
        "SaveImage", caption="Before and after", images=made[0], filename_prefix="gimbal/try it", size=(1000, 640)
    )
    return [*decoded, made], [save]


def _place(
    flow: Workflow,
    start: list[Node],
    ours: list[list[Node]],
    title: str,
    samplers: list[Node],
    result: tuple[list[Node], list[Node]],
) -> None:
    made, shown = result
    x = flow.grid([start])
    below = shown[0].room + 3 * GAP + TITLE
    flow.grid([shown], at=(x, 0))
    x = flow.grid(ours, at=(x, below))
    x = flow.grid([samplers], at=(x, below))
    flow.grid([made], at=(x, below))
    flow.group("Start here", start, "load")
    flow.group("Before and after", shown, "gimbal")
    flow.group(title, [node for column in ours for node in column], "gimbal")
    flow.group("Same seed, same cfg", samplers)
    flow.group("Pictures with labels", made)
