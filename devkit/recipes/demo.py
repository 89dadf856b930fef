"""On the demo model, which needs no download."""

from __future__ import annotations

from ..author import Workflow
from .parts import SEED, look

# What the demo compares: a caption, its group's title and Micrograin's settings.
VARIANTS: tuple[tuple[str, str, dict], ...] = (
    ("plain", "Plain", {}),
    ("hard, 0.1 %", "Stabilised: default", {"form": "hard", "q_low": 0.001, "q_high": 0.999}),
    ("hard, 1 %", "Stabilised: stronger", {"form": "hard", "q_low": 0.01, "q_high": 0.99}),
    ("smooth, 1 %", "Stabilised: without a kink", {"form": "smooth", "q_low": 0.01, "q_high": 0.99}),
)


def micrograin(flow: Workflow) -> None:
    model = flow.node("UNETLoader", unet_name="gimbal_letters_fp16.safetensors")
    letters = flow.node("GimbalDemoLetters", text="GIMBALEKRS", rows=1)
    # One for all four, so that a changed or randomised seed stays the same in what is compared.
    seed = flow.node("PrimitiveInt", caption="The seed of all four", value=SEED)
    shared = {"positive": letters[0], "negative": letters[1], "latent_image": letters[2], "seed": seed[0]}
    shared |= {"steps": 8, "cfg": 9.0, "sampler_name": "dpmpp_2m", "scheduler": "simple"}
    rows, images = [], []
    for name, title, options in VARIANTS:
        stage = []
        if options:
            stage = [flow.node("GimbalMicrograin", caption=f"Micrograin (QSilk): {name}", model=model[0], **options)]
        sampler = flow.node("KSampler", caption=f"KSampler: {name}", model=(stage or [model])[0][0], **shared)
        image = flow.node("GimbalDemoDecode", latent=sampler[0], size=(220, 0))
        rows.append((title, [stage, [sampler], [image]]))
        images.append(image)
    labels = "\n".join("plain" if not options else f"micrograin | {name}" for name, _, options in VARIANTS)
    pictures = dict(zip(("first", "second", "third", "fourth"), (image[0] for image in images), strict=True))
    sheet = flow.node("GimbalDemoSheet", title="Guidance 9, 8 steps, one seed", labels=labels, columns=10, **pictures)
    save = flow.node("SaveImage", images=sheet[0], filename_prefix="gimbal/micrograin", size=(900, 520))
    note = look(
        flow,
        "Plain against stabilised",
        "Four samplers, one seed. Guidance 9 in 8 steps is too much for this small model: colours burn and strokes fray.",
        "**Micrograin** clamps the most extreme values of each step's prediction.",
        "At its default, 0.1 %, the change is small; at 1 % bright strokes keep their colour.",
        "Try other letters, seeds and guidance.",
    )
    x = flow.grid([[model, letters, seed, note]])
    x = flow.grid(*(columns for _, columns in rows), at=(x, 0))
    flow.grid([[sheet], [save]], at=(x, 0))
    flow.group("Load", [model, letters, seed, note], "load")
    for title, columns in rows:
        colour = "plain" if title == "Plain" else "gimbal"
        flow.group(title, [node for column in columns for node in column], colour)


def multipass(flow: Workflow) -> None:
    model = flow.node("UNETLoader", unet_name="gimbal_letters_fp16.safetensors")
    letters = flow.node("GimbalDemoLetters", text="GIMBAL", rows=1)
    conds = {"model": model[0], "positive": letters[0], "negative": letters[1], "cfg": 9.0}
    conds |= {"sampler_name": "euler", "scheduler": "simple", "seed": SEED, "steps": 8}
    first = flow.node("KSampler", caption="First pass", latent_image=letters[2], **conds)
    larger = {"upscale_method": "bislerp", "scale_by": 1.25}
    plain_larger = flow.node("LatentUpscaleBy", samples=first[0], **larger)
    plain = flow.node("KSampler", caption="Second pass, plain", latent_image=plain_larger[0], denoise=0.5, **conds)
    plain_image = flow.node("GimbalDemoDecode", latent=plain[0])
    before = flow.node("GimbalAQClipLatent", latent=first[0], corridor="strong", tile=8, stride=4)
    stable_larger = flow.node("LatentUpscaleBy", samples=before[0], **larger)
    after = flow.node("GimbalMicrograinLatent", latent=stable_larger[0], form="smooth", q_low=0.005, q_high=0.995)
    stable = flow.node("KSampler", caption="Second pass, stabilised", latent_image=after[0], denoise=0.5, **conds)
    image = flow.node("GimbalDemoDecode", latent=stable[0])
    sheet = flow.node(
        "GimbalDemoSheet",
        first=plain_image[0],
        second=image[0],
        title="Two passes, guidance 9",
        labels="plain\nstabilised | between the passes",
    )
    save = flow.node("SaveImage", images=sheet[0], filename_prefix="gimbal_multipass", size=(900, 520))
    note = look(
        flow,
        "Two passes",
        "Two passes on the demo model; the first is shared.",
        "The lower branch stabilises its latent before and after the upscale.",
        "For your own model: the template *Fix a burnt second pass*.",
    )
    x = flow.grid([[model, letters, note]])
    x = flow.grid([[first]], at=(x, 0))
    plainly, stabilised = (
        [[plain_larger], [plain], [plain_image]],
        [[before, stable_larger], [after], [stable], [image]],
    )
    x = flow.grid(plainly, stabilised, at=(x, 0))
    flow.grid([[sheet], [save]], at=(x, 0))
    flow.group("Load", [model, letters, note], "load")
    flow.group("Second pass as it is", [node for column in plainly for node in column])
    flow.group("Stabilised between the passes", [node for column in stabilised for node in column], "gimbal")
