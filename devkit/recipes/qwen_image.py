"""Qwen-Image, with the files and the settings of ComfyUI's template."""

from __future__ import annotations

from ..author import Workflow
from .files import QWEN, QWEN_CLIP, QWEN_VAE
from .parts import STRIP, beside, compare, dials, look, model_files, picture, prompts


def calm_places(flow: Workflow) -> None:
    model = flow.node("UNETLoader", unet_name=QWEN)
    clip = flow.node("CLIPLoader", clip_name=QWEN_CLIP, type="qwen_image")
    vae = flow.node("VAELoader", vae_name=QWEN_VAE)
    shift = flow.node("ModelSamplingAuraFlow", model=model[0], shift=3.1)
    positive, negative = prompts(
        flow, clip[0], 'a small harbour shop at dusk, a painted wooden sign that reads "GIMBAL", wet cobbles', ""
    )
    latent = flow.node("EmptySD3LatentImage", width=1328, height=1328)
    seed, cfg = dials(flow, 2.5)
    common = {
        "positive": positive[0],
        "negative": negative[0],
        "latent_image": latent[0],
        "seed": seed[0],
        "steps": 20,
    }
    common |= {"cfg": cfg[0], "sampler_name": "euler", "scheduler": "simple"}
    plain = flow.node("KSampler", caption="Plain CFG", model=shift[0], **common)
    plain_image, plain_save = picture(flow, plain, vae[0], "plain")
    samg = flow.node("GimbalSAMG", model=shift[0])
    sampler = flow.node("KSampler", caption="SAMG", model=samg[0], **common)
    image, save = picture(flow, sampler, vae[0], "samg")
    preview = flow.node("GimbalGuidancePreview", latent=sampler[0], model=samg[0])
    shown = flow.node("PreviewImage", images=preview[0], size=STRIP)
    note = look(
        flow,
        "SAMG at low guidance",
        "Same seed. Qwen-Image runs at low guidance, where **SAMG** did best on our small demo model. w_min and w_max follow "
        "cfg, 0.44 and 1.07 of it: as strong as plain CFG on average.",
        "Look at the lettering and the edges, then at the calm ground between them.",
        "The strip at the bottom shows where it guided how strongly.",
        "Try cfg 4 and cfg 1.5. At cfg 1 SAMG cannot act and says so.",
        "With a Lightning LoRA (cfg 1) use Micrograin instead.",
    )
    compare(
        flow,
        [[model, clip, vae, shift, seed, cfg], [positive, negative, latent, model_files(flow)]],
        note,
        ("Plain CFG", [[plain, plain_image], [plain_save]]),
        ("SAMG", [[samg], [sampler, image], [save]]),
        beside(flow, plain_image, image, words="Left: plain CFG. Right: SAMG"),
        below=[[preview], [shown]],
    )
