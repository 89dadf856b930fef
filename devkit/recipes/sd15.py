"""Stable Diffusion 1.5: small enough for any machine, so the tour of QSilk and the inpainting are on it."""

from __future__ import annotations

from ..author import Workflow
from .files import SD15
from .parts import BURNT, STRONGER, beside, clamped, compare, dials, look, model_files, picture, prompts


def burnt(flow: Workflow) -> None:
    checkpoint = flow.node("CheckpointLoaderSimple", ckpt_name=SD15)
    positive, negative = prompts(flow, checkpoint[1])
    latent = flow.node("EmptyLatentImage", width=512, height=512)
    seed, cfg = dials(flow, BURNT)
    common = {
        "positive": positive[0],
        "negative": negative[0],
        "latent_image": latent[0],
        "seed": seed[0],
        "steps": 25,
    }
    common |= {"cfg": cfg[0], "sampler_name": "dpmpp_2m", "scheduler": "karras"}
    clamped(
        flow,
        checkpoint,
        [checkpoint, positive, negative, latent, seed, cfg],
        common,
        checkpoint[2],
        [
            "Look at highlights and deep shadows: burnt spots should keep their colour, all else should stay the picture it was.",
            "Lower cfg to 8: less burns, and the two pictures come closer. At cfg 4 expect none of it.",
            "Compare with plain cfg 8 too: part of what AQClip does is to lower contrast. Corridor strong does more of it.",
            "Ctrl+B on a node takes it out; strength 0 is exactly the left picture.",
        ],
    )


def better_or_weaker(flow: Workflow) -> None:
    checkpoint = flow.node("CheckpointLoaderSimple", ckpt_name=SD15)
    positive, negative = prompts(flow, checkpoint[1])
    latent = flow.node("EmptyLatentImage", width=512, height=512)
    seed, cfg = dials(flow, BURNT)
    common = {"positive": positive[0], "negative": negative[0], "latent_image": latent[0], "seed": seed[0]}
    common |= {"steps": 25, "cfg": cfg[0], "sampler_name": "dpmpp_2m", "scheduler": "karras"}
    plain = flow.node("KSampler", caption="Plain, same cfg", model=checkpoint[0], **common)
    plain_image, plain_save = picture(flow, plain, checkpoint[2], "plain")
    aqclip = flow.node("GimbalAQClip", model=checkpoint[0], corridor="gentle")
    grain = flow.node("GimbalMicrograin", model=aqclip[0], **STRONGER)
    compared = flow.node("GimbalEqualStrength", model=grain[0], plain_model=checkpoint[0], **common)
    image, save = picture(flow, compared, checkpoint[2], "patched")
    equal_image, equal_save = picture(flow, compared, checkpoint[2], "plain at equal strength", output=1)
    note = look(
        flow,
        "Better, or only weaker?",
        "**AQClip** and **Micrograin** take the burn off a picture, but a lower cfg does so too. **Compare at Equal Strength** "
        "finds the plain cfg whose latents have the same deviation, and samples it at the same seed.",
        "If the last two pictures are equally good, the patch did no more than that cfg does. Use the cfg: it costs nothing.",
        "The node shows the cfg that it found. It samples the plain model a few times, so the first run takes longest.",
        "Put your own patch (RescaleCFG, APG, a LoRA, ...) in place of the two nodes.",
        "Try several seeds, or batch_size 4, before you decide.",
    )
    compare(
        flow,
        [[checkpoint, positive, negative, latent, seed, cfg, model_files(flow)]],
        note,
        ("Plain", [[plain, plain_image], [plain_save]]),
        (
            "Patched, and plain at equal strength",
            [[aqclip, grain], [compared, image, equal_image], [save, equal_save]],
        ),
        beside(flow, plain_image, image, equal_image, words="Plain; patched; plain at equal strength"),
    )


def second_pass(flow: Workflow) -> None:
    checkpoint = flow.node("CheckpointLoaderSimple", ckpt_name=SD15)
    positive, negative = prompts(flow, checkpoint[1])
    latent = flow.node("EmptyLatentImage", width=512, height=512)
    seed, cfg = dials(flow, BURNT)
    conds = {"model": checkpoint[0], "positive": positive[0], "negative": negative[0], "seed": seed[0], "cfg": cfg[0]}
    conds |= {"sampler_name": "euler", "scheduler": "normal"}
    first = flow.node("KSampler", caption="First pass", latent_image=latent[0], steps=20, **conds)
    twice, again = {"upscale_method": "bislerp", "scale_by": 1.5}, {"steps": 14, "denoise": 0.5, **conds}
    larger = flow.node("LatentUpscaleBy", samples=first[0], **twice)
    plain = flow.node("KSampler", caption="Second pass, plain", latent_image=larger[0], **again)
    plain_image, plain_save = picture(flow, plain, checkpoint[2], "plain")
    before = flow.node(
        "GimbalAQClipLatent", caption="Stabilise before the upscale", latent=first[0], corridor="strong"
    )
    larger_too = flow.node("LatentUpscaleBy", samples=before[0], **twice)
    after = flow.node("GimbalMicrograinLatent", caption="... and after it", latent=larger_too[0], form="smooth")
    sampler = flow.node("KSampler", caption="Second pass, stabilised", latent_image=after[0], **again)
    image, save = picture(flow, sampler, checkpoint[2], "stabilised")
    note = look(
        flow,
        "One first pass, two second ones",
        "Both second passes have the same seed and cfg. Upscaling carries the first pass's outliers into the second, "
        "which builds on them; the lower branch takes them off twice.",
        "Look at over-sharp edges, white sparks and stains of colour in the larger picture.",
        "**AQClip on Latent** goes before the upscale, **Micrograin on Latent** after it, where interpolation overshot.",
        "Try denoise 0.35 to 0.6 in both second passes, and scale_by 2 in both upscales.",
        "If contrast falls, set AQClip's corridor back to gentle.",
    )
    compare(
        flow,
        [[checkpoint, positive, negative, latent, seed, cfg, model_files(flow)]],
        note,
        ("Second pass as it is", [[larger], [plain, plain_image], [plain_save]]),
        ("Stabilised between the passes", [[before, larger_too], [after], [sampler, image], [save]]),
        beside(flow, plain_image, image, words="Left: plain second pass. Right: stabilised"),
        before=("First pass", [[first]]),
    )


def inpainting(flow: Workflow) -> None:
    checkpoint = flow.node("CheckpointLoaderSimple", ckpt_name=SD15)
    positive, negative = prompts(flow, checkpoint[1])
    inside = flow.node(
        "CLIPTextEncode",
        caption="What to paint into the mask",
        text="photo of a wooden sailing ship on the waves at dusk, white sails",
        clip=checkpoint[1],
    )
    latent = flow.node("EmptyLatentImage", width=512, height=512)
    seed, cfg = dials(flow, BURNT)
    common = {"model": checkpoint[0], "negative": negative[0], "seed": seed[0], "steps": 25}
    common |= {"sampler_name": "dpmpp_2m", "scheduler": "karras"}
    first = flow.node(
        "KSampler", caption="The picture to change", positive=positive[0], latent_image=latent[0], cfg=7.5, **common
    )
    first_image, first_save = picture(flow, first, checkpoint[2], "before")
    nothing = flow.node("SolidMask", caption="Mask: nothing ...", value=0.0, width=512, height=512)
    patch = flow.node("SolidMask", caption="... but this patch", value=1.0, width=240, height=240)
    mask = flow.node(
        "MaskComposite",
        caption="... at this place",
        destination=nothing[0],
        source=patch[0],
        x=240,
        y=200,
        operation="add",
    )
    masked = flow.node("SetLatentNoiseMask", samples=first[0], mask=mask[0])
    common |= {"positive": inside[0], "latent_image": masked[0], "cfg": cfg[0], "denoise": 0.9}
    plain = flow.node("KSampler", caption="Inpainted, plain", **common)
    plain_image, plain_save = picture(flow, plain, checkpoint[2], "plain")
    aqclip = flow.node("GimbalAQClip", model=checkpoint[0], corridor="gentle")
    grain = flow.node("GimbalMicrograin", model=aqclip[0], **STRONGER)
    sampler = flow.node("KSampler", caption="Inpainted, stabilised", **{**common, "model": grain[0]})
    image, save = picture(flow, sampler, checkpoint[2], "stabilised")
    note = look(
        flow,
        "A patch painted anew, twice",
        "The first picture is made here, so that this runs without a file; then a patch of it is painted anew, plain and "
        "with **AQClip** and **Micrograin**, at one seed and cfg.",
        "Look at the patch and its border. Outside the mask the sampler puts the old picture back: there nothing changes.",
        "For your own picture: Load Image (right-click: mask editor) and VAE Encode in place of the first sampler.",
        "Try denoise 0.6 to 1 and cfg 6 to 12.",
        "AQClip's limits are the tile's own, so a bright border does not shift them elsewhere.",
    )
    compare(
        flow,
        [[checkpoint, positive, negative, inside, latent, seed, cfg, model_files(flow)]],
        note,
        ("Inpainted as it is", [[plain, plain_image], [plain_save]]),
        ("Stabilised: QSilk", [[aqclip, grain], [sampler, image], [save]]),
        beside(flow, first_image, plain_image, image, words="Before; inpainted, plain; inpainted, stabilised"),
        before=("A picture, and a patch of it", [[first, first_image, first_save], [nothing, patch, mask, masked]]),
    )
