"""On the demo model, which needs no download."""

from __future__ import annotations

from ..author import Workflow
from .parts import SEED, look


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
        "For your own model: the template qsilk_multipass.",
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
