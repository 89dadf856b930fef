"""SDXL: the clamps, SAMG against plain CFG, and all at once beside ComfyUI's own guidance node."""

from __future__ import annotations

from ..author import Node, Workflow
from .files import SDXL
from .parts import BURNT, STRIP, beside, clamped, compare, dials, look, model_files, picture, prompts


def _load(flow: Workflow, guidance: float) -> tuple[list[Node], dict]:
    checkpoint = flow.node("CheckpointLoaderSimple", ckpt_name=SDXL)
    positive, negative = prompts(flow, checkpoint[1])
    latent = flow.node("EmptyLatentImage", width=1024, height=1024)
    seed, cfg = dials(flow, guidance)
    common = {
        "positive": positive[0],
        "negative": negative[0],
        "latent_image": latent[0],
        "seed": seed[0],
        "steps": 25,
    }
    common |= {"cfg": cfg[0], "sampler_name": "dpmpp_2m", "scheduler": "karras"}
    return [checkpoint, positive, negative, latent, seed, cfg], common


def burnt(flow: Workflow) -> None:
    load, common = _load(flow, BURNT)
    clamped(
        flow,
        load[0],
        load,
        common,
        load[0][2],
        [
            "Look at the lamp, the sky and the foam: burnt spots should keep their colour. The composition stays.",
            "Lower cfg to 7: less burns, and the two pictures come closer.",
            "Compare with plain cfg 8 too: part of what AQClip does is to lower contrast. Corridor strong does more of it.",
            "Ctrl+B on a node takes it out; strength 0 is exactly the left picture.",
        ],
    )


def calm_places(flow: Workflow) -> None:
    load, common = _load(flow, 7.5)
    checkpoint = load[0]
    plain = flow.node("KSampler", caption="Plain CFG", model=checkpoint[0], **common)
    plain_image, plain_save = picture(flow, plain, checkpoint[2], "plain")
    samg = flow.node("GimbalSAMG", model=checkpoint[0])
    guided = flow.node("KSampler", caption="SAMG", model=samg[0], **common)
    image, save = picture(flow, guided, checkpoint[2], "samg")
    preview = flow.node("GimbalGuidancePreview", latent=guided[0], model=samg[0])
    shown = flow.node("PreviewImage", images=preview[0], size=STRIP)
    note = look(
        flow,
        "SAMG against plain CFG",
        "Same seed. **SAMG** guides each place of the picture at its own scale: less where guidance is strong, at edges, "
        "more in calm areas.",
        "w_min and w_max follow cfg: 0.44 and 1.07 of it, so that both sides are guided equally strongly on average.",
        "The strip at the bottom shows where it guided how strongly.",
        "Try cfg 2: on our small demo model SAMG was better than plain CFG at low scales only.",
        "strength 0 is plain CFG, bit for bit.",
    )
    compare(
        flow,
        [[*load, model_files(flow)]],
        note,
        ("Plain CFG", [[plain, plain_image], [plain_save]]),
        ("SAMG", [[samg], [guided, image], [save]]),
        beside(flow, plain_image, image, words="Left: plain CFG. Right: SAMG"),
        below=[[preview], [shown]],
    )


def every_node(flow: Workflow) -> None:
    load, common = _load(flow, BURNT)
    checkpoint = load[0]
    plain = flow.node("KSampler", caption="Plain", model=checkpoint[0], **common)
    plain_image, plain_save = picture(flow, plain, checkpoint[2], "plain")
    samg = flow.node("GimbalSAMG", model=checkpoint[0])
    rescale = flow.node("RescaleCFG", model=samg[0], multiplier=0.7)
    aqclip = flow.node("GimbalAQClip", model=rescale[0], corridor="gentle", confidence="attention")
    grain = flow.node("GimbalMicrograin", model=aqclip[0], form="smooth")
    sampler = flow.node("KSampler", caption="All nodes", model=grain[0], **common)
    image, save = picture(flow, sampler, checkpoint[2], "stacked")
    preview = flow.node("GimbalConfidencePreview", latent=sampler[0], model=grain[0])
    shown = flow.node("PreviewImage", images=preview[0], size=STRIP)
    note = look(
        flow,
        "All at once, at high guidance",
        "Same seed and cfg. **SAMG** shapes the guidance before CFG, ComfyUI's own **RescaleCFG** combines it, "
        "**AQClip** keeps each tile in its corridor (wider where attention is certain), **Micrograin** takes off the last 0.1 %.",
        "Take one out with Ctrl+B to see its share; the order in the graph does not matter for SAMG.",
        "The strip shows what AQClip read from the attention.",
        "Try RescaleCFG 0 to 0.7. Does contrast fall? Lower it, or AQClip's strength.",
        "SAMG's scales follow cfg: 0.44 to 1.07 of it, which is as strong on average.",
    )
    compare(
        flow,
        [[*load, model_files(flow)]],
        note,
        ("Plain", [[plain, plain_image], [plain_save]]),
        ("SAMG, RescaleCFG, AQClip, Micrograin", [[samg, rescale, aqclip, grain], [sampler, image, preview], [save]]),
        beside(flow, plain_image, image, words="Left: plain. Right: all nodes"),
        below=[[], [shown]],
    )
