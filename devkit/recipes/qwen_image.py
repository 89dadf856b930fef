"""Qwen-Image, with the files and the settings of ComfyUI's template."""

from __future__ import annotations

from ..author import Workflow
from .files import QWEN, QWEN_CLIP, QWEN_VAE
from .parts import SEED, STRIP, compare, look, model_files, picture, prompts


def qwen_image_side_by_side(flow: Workflow) -> None:
    model = flow.node("UNETLoader", unet_name=QWEN)
    clip = flow.node("CLIPLoader", clip_name=QWEN_CLIP, type="qwen_image")
    vae = flow.node("VAELoader", vae_name=QWEN_VAE)
    shift = flow.node("ModelSamplingAuraFlow", model=model[0], shift=3.1)
    positive, negative = prompts(
        flow, clip[0], 'a small harbour shop at dusk, a painted wooden sign that reads "GIMBAL", wet cobbles', ""
    )
    latent = flow.node("EmptySD3LatentImage", width=1328, height=1328)
    common = {"positive": positive[0], "negative": negative[0], "latent_image": latent[0], "seed": SEED, "steps": 20}
    common |= {"sampler_name": "euler", "scheduler": "simple"}
    plain = flow.node("KSampler", caption="Plain: cfg 2.5", model=shift[0], cfg=2.5, **common)
    plain_image, plain_save = picture(flow, plain, vae[0], "plain")
    samg = flow.node("GimbalSAMG", model=shift[0])
    grain = flow.node("GimbalMicrograin", model=samg[0], form="smooth")
    sampler = flow.node("KSampler", caption="SAMG and Micrograin: cfg 1.7", model=grain[0], cfg=1.7, **common)
    image, save = picture(flow, sampler, vae[0], "stabilised")
    preview = flow.node("GimbalGuidancePreview", latent=sampler[0], model=grain[0])
    shown = flow.node("PreviewImage", images=preview[0], size=STRIP)
    note = look(
        flow,
        "SAMG at low guidance",
        "Same seed. Qwen-Image runs at low guidance, where **SAMG** did best on our small demo model: 1.7 below is as strong as "
        "2.5 above, for its mean scale is about 1.5 times cfg.",
        "Look at the lettering and the edges, then at the calm ground between them.",
        "The strip at the bottom shows where it guided how strongly.",
        "Try cfg 4 above and 2.7 below, and 1.5 above and 1 below: at cfg 1 SAMG cannot act and says so.",
        "With a Lightning LoRA (cfg 1) keep Micrograin only.",
    )
    compare(
        flow,
        [[model, clip, vae, shift], [positive, negative, latent, model_files(flow)]],
        note,
        ("Plain CFG", [[plain, plain_image], [plain_save]]),
        ("SAMG and Micrograin", [[samg, grain], [sampler, image], [save]]),
        below=[[preview], [shown]],
    )
