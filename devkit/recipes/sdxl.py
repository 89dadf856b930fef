"""SDXL: SAMG against plain CFG, and all at once beside ComfyUI's own guidance node."""

from __future__ import annotations

from ..author import Workflow
from .files import SDXL
from .parts import SEED, STRIP, compare, look, model_files, picture, prompts


def sdxl_side_by_side(flow: Workflow) -> None:
    checkpoint = flow.node("CheckpointLoaderSimple", ckpt_name=SDXL)
    positive, negative = prompts(flow, checkpoint[1])
    latent = flow.node("EmptyLatentImage", width=1024, height=1024)
    common = {"positive": positive[0], "negative": negative[0], "latent_image": latent[0], "seed": SEED, "steps": 25}
    common |= {"sampler_name": "dpmpp_2m", "scheduler": "karras"}
    plain = flow.node("KSampler", caption="Plain: cfg 7.5", model=checkpoint[0], cfg=7.5, **common)
    plain_image, plain_save = picture(flow, plain, checkpoint[2], "plain")
    samg = flow.node("GimbalSAMG", model=checkpoint[0])
    guided = flow.node("KSampler", caption="SAMG: cfg 5", model=samg[0], cfg=5.0, **common)
    image, save = picture(flow, guided, checkpoint[2], "samg")
    preview = flow.node("GimbalGuidancePreview", latent=guided[0], model=samg[0])
    shown = flow.node("PreviewImage", images=preview[0], size=STRIP)
    note = look(
        flow,
        "SAMG against plain CFG",
        "Same seed. **SAMG** guides each place of the picture at its own scale: less where guidance is strong, at edges, "
        "more in calm areas.",
        "Its mean scale is about 1.5 times cfg: compare it with plain CFG of 1.5 times its cfg, as here.",
        "The strip at the bottom shows where it guided how strongly.",
        "Try 7.5 and 5, then 4.5 and 3, then 3 and 2: on our small demo model it beat plain CFG at low scales alone.",
        "strength 0 is plain CFG, bit for bit.",
    )
    compare(
        flow,
        [[checkpoint, positive, negative, latent, model_files(flow)]],
        note,
        ("Plain CFG", [[plain, plain_image], [plain_save]]),
        ("SAMG", [[samg], [guided, image], [save]]),
        below=[[preview], [shown]],
    )


def stacked(flow: Workflow) -> None:
    checkpoint = flow.node("CheckpointLoaderSimple", ckpt_name=SDXL)
    positive, negative = prompts(flow, checkpoint[1])
    latent = flow.node("EmptyLatentImage", width=1024, height=1024)
    common = {"positive": positive[0], "negative": negative[0], "latent_image": latent[0], "seed": SEED, "steps": 25}
    common |= {"sampler_name": "dpmpp_2m", "scheduler": "karras"}
    plain = flow.node("KSampler", caption="Plain: cfg 9", model=checkpoint[0], cfg=9.0, **common)
    plain_image, plain_save = picture(flow, plain, checkpoint[2], "plain")
    samg = flow.node("GimbalSAMG", model=checkpoint[0])
    rescale = flow.node("RescaleCFG", model=samg[0], multiplier=0.7)
    aqclip = flow.node("GimbalAQClip", model=rescale[0], confidence="attention")
    grain = flow.node("GimbalMicrograin", model=aqclip[0], form="smooth")
    sampler = flow.node("KSampler", caption="Stacked: cfg 6", model=grain[0], cfg=6.0, **common)
    image, save = picture(flow, sampler, checkpoint[2], "stacked")
    preview = flow.node("GimbalConfidencePreview", latent=sampler[0], model=grain[0])
    shown = flow.node("PreviewImage", images=preview[0], size=STRIP)
    note = look(
        flow,
        "All at once, at high guidance",
        "Same seed, at high guidance. **SAMG** shapes the guidance before CFG, ComfyUI's own **RescaleCFG** combines it, "
        "**AQClip** keeps each tile in its corridor (wider where attention is certain), **Micrograin** takes off the last 0.1 %.",
        "Take one out with Ctrl+B to see its share; the order in the graph does not matter for SAMG.",
        "The strip shows what AQClip read from the attention.",
        "Try RescaleCFG 0 to 0.7. Does contrast fall? Lower it, or AQClip's strength.",
        "SAMG wants two thirds of your usual cfg: hence 6 against 9.",
    )
    compare(
        flow,
        [[checkpoint, positive, negative, latent, model_files(flow)]],
        note,
        ("Plain", [[plain, plain_image], [plain_save]]),
        ("SAMG, RescaleCFG, AQClip, Micrograin", [[samg, rescale, aqclip, grain], [sampler, image, preview], [save]]),
        below=[[], [shown]],
    )
