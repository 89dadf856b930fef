"""The workflows in workflows/ and demo/workflows/, as `python dev.py workflows` writes them. Change them here, not in the files."""

from __future__ import annotations

from collections.abc import Callable

from .author import Node, Workflow

SDXL, SD15 = "sd_xl_base_1.0.safetensors", "v1-5-pruned-emaonly-fp16.safetensors"
PROMPT = "photo of an old lighthouse on a cliff at dusk, waves breaking, detailed stone, warm lamp"
NEGATIVE = "blurry, oversaturated, low quality"
SEED = 7
PICTURE, STRIP = (420, 460), (900, 460)


def prompts(flow: Workflow, clip: tuple[Node, int], prompt: str = PROMPT, negative: str = NEGATIVE) -> list[Node]:
    return [flow.node("CLIPTextEncode", text=prompt, clip=clip), flow.node("CLIPTextEncode", text=negative, clip=clip)]


def samg_side_by_side(flow: Workflow) -> None:
    checkpoint = flow.node("CheckpointLoaderSimple", ckpt_name=SDXL)
    positive, negative = prompts(flow, checkpoint[1])
    latent = flow.node("EmptyLatentImage", width=1024, height=1024)
    common = {"positive": positive[0], "negative": negative[0], "latent_image": latent[0], "seed": SEED, "steps": 25}
    common |= {"sampler_name": "dpmpp_2m", "scheduler": "karras"}
    plain = flow.node("KSampler", caption="Plain: cfg 7.5", model=checkpoint[0], cfg=7.5, **common)
    plain_image = flow.node("VAEDecode", samples=plain[0], vae=checkpoint[2])
    plain_save = flow.node("SaveImage", images=plain_image[0], filename_prefix="gimbal/plain", size=PICTURE)
    samg = flow.node("GimbalSAMG", model=checkpoint[0])
    guided = flow.node("KSampler", caption="SAMG: cfg 5", model=samg[0], cfg=5.0, **common)
    guided_image = flow.node("VAEDecode", samples=guided[0], vae=checkpoint[2])
    guided_save = flow.node("SaveImage", images=guided_image[0], filename_prefix="gimbal/samg", size=PICTURE)
    preview = flow.node("GimbalGuidancePreview", latent=guided[0], model=samg[0])
    picture = flow.node("PreviewImage", images=preview[0], size=STRIP)
    note = flow.note(
        "## SAMG against plain CFG\n\nSame seed, same prompt. **SAMG** guides each place of the picture at its own scale: less "
        "at edges, where guidance is strong, more in calm areas.\n\nIts mean scale is about 1.5 times cfg, so the lower "
        "sampler runs at two thirds of the upper one's cfg. Comparing both at the same cfg compares strengths, not methods.\n\n"
        "The strip at the bottom shows where it guided how strongly.",
        height=300,
    )
    x, _ = flow.columns([checkpoint, positive, negative, latent, note])
    _, below = flow.columns([plain], [plain_image], [plain_save], at=(x + 60, 0))
    flow.columns([samg], [guided], [guided_image], [guided_save], at=(x + 60, below + 60))
    flow.columns([preview], [picture], at=(x + 60, below + 700))
    flow.group("Load", [checkpoint, positive, negative, latent, note], "load")
    flow.group("Plain CFG", [plain, plain_image, plain_save])
    flow.group("SAMG", [samg, guided, guided_image, guided_save, preview, picture], "gimbal")


def stacked(flow: Workflow) -> None:
    checkpoint = flow.node("CheckpointLoaderSimple", ckpt_name=SDXL)
    positive, negative = prompts(flow, checkpoint[1])
    latent = flow.node("EmptyLatentImage", width=1024, height=1024)
    common = {"positive": positive[0], "negative": negative[0], "latent_image": latent[0], "seed": SEED, "steps": 25}
    common |= {"sampler_name": "dpmpp_2m", "scheduler": "karras"}
    plain = flow.node("KSampler", caption="Plain: cfg 9", model=checkpoint[0], cfg=9.0, **common)
    plain_image = flow.node("VAEDecode", samples=plain[0], vae=checkpoint[2])
    plain_save = flow.node("SaveImage", images=plain_image[0], filename_prefix="gimbal/plain", size=PICTURE)
    samg = flow.node("GimbalSAMG", model=checkpoint[0])
    rescale = flow.node("RescaleCFG", model=samg[0], multiplier=0.7)
    aqclip = flow.node("GimbalAQClip", model=rescale[0], corridor="strong", confidence="attention")
    grain = flow.node("GimbalMicrograin", model=aqclip[0], form="smooth")
    sampler = flow.node("KSampler", caption="Stacked: cfg 6", model=grain[0], cfg=6.0, **common)
    image = flow.node("VAEDecode", samples=sampler[0], vae=checkpoint[2])
    save = flow.node("SaveImage", images=image[0], filename_prefix="gimbal/stacked", size=PICTURE)
    confidence = flow.node("GimbalConfidencePreview", latent=sampler[0], model=grain[0])
    picture = flow.node("PreviewImage", images=confidence[0], size=STRIP)
    note = flow.note(
        "## All at once, at high guidance\n\nSame seed. Below, in this order: **SAMG** shapes the guidance before CFG, ComfyUI's "
        "own **RescaleCFG** combines it, **AQClip** keeps each tile of the result in its corridor (wider where the "
        "network's attention is certain), **Micrograin** takes off the last 0.1 %.\n\nTake one out with Ctrl+B to see its "
        "share. The strip shows what AQClip read from the attention.",
        height=300,
    )
    x, _ = flow.columns([checkpoint, positive, negative, latent, note])
    _, below = flow.columns([plain], [plain_image], [plain_save], at=(x + 60, 0))
    flow.columns([samg, rescale], [aqclip], [grain], [sampler], [image], [save], at=(x + 60, below + 60))
    flow.columns([confidence], [picture], at=(x + 60, below + 740))
    flow.group("Load", [checkpoint, positive, negative, latent, note], "load")
    flow.group("Plain", [plain, plain_image, plain_save])
    gimbal = [samg, rescale, aqclip, grain, sampler, image, save, confidence, picture]
    flow.group("SAMG, RescaleCFG, AQClip, Micrograin", gimbal, "gimbal")


def qsilk_multipass(flow: Workflow) -> None:
    checkpoint = flow.node("CheckpointLoaderSimple", ckpt_name=SD15)
    positive, negative = prompts(flow, checkpoint[1])
    latent = flow.node("EmptyLatentImage", width=512, height=512)
    conds = {"positive": positive[0], "negative": negative[0], "sampler_name": "euler", "scheduler": "normal"}
    first = flow.node(
        "KSampler",
        caption="First pass",
        model=checkpoint[0],
        latent_image=latent[0],
        seed=SEED,
        steps=20,
        cfg=8.0,
        **conds,
    )
    load = [checkpoint, positive, negative, latent]

    again = {"model": checkpoint[0], "seed": SEED, "steps": 14, "cfg": 8.0, "denoise": 0.5, **conds}
    twice = {"upscale_method": "bislerp", "scale_by": 1.5}
    larger = flow.node("LatentUpscaleBy", samples=first[0], **twice)
    plain = flow.node("KSampler", caption="Second pass, plain", latent_image=larger[0], **again)
    plain_image = flow.node("VAEDecode", samples=plain[0], vae=checkpoint[2])
    plain_save = flow.node("SaveImage", images=plain_image[0], filename_prefix="gimbal/plain", size=PICTURE)
    before = flow.node(
        "GimbalAQClipLatent", caption="Stabilise before the upscale", latent=first[0], corridor="strong"
    )
    larger_too = flow.node("LatentUpscaleBy", samples=before[0], **twice)
    after = flow.node("GimbalMicrograinLatent", caption="... and after it", latent=larger_too[0], form="smooth")
    sampler = flow.node("KSampler", caption="Second pass, stabilised", latent_image=after[0], **again)
    image = flow.node("VAEDecode", samples=sampler[0], vae=checkpoint[2])
    save = flow.node("SaveImage", images=image[0], filename_prefix="gimbal/stabilised", size=PICTURE)
    note = flow.note(
        "## Stabilise between passes\n\nUpscaling a latent carries the first pass's outliers into the second, which builds on "
        "them. The lower branch takes them off twice: **AQClip on Latent** before the upscale, tile by tile, and "
        "**Micrograin on Latent** after it, which removes what interpolation overshot.\n\nBoth branches share the first pass "
        "and all seeds.",
        height=260,
    )
    x, _ = flow.columns([*load, note])
    x, _ = flow.columns([first], at=(x + 60, 0))
    _, below = flow.columns([larger], [plain], [plain_image], [plain_save], at=(x + 60, 0))
    flow.columns([before, larger_too], [after], [sampler], [image], [save], at=(x + 60, below + 60))
    flow.group("Load", [*load, note], "load")
    flow.group("Second pass as it is", [larger, plain, plain_image, plain_save])
    flow.group("Stabilised between the passes", [before, larger_too, after, sampler, image, save], "gimbal")


def samg_video(flow: Workflow) -> None:
    model = flow.node("UNETLoader", unet_name="wan2.1_t2v_1.3B_fp16.safetensors")
    clip = flow.node("CLIPLoader", clip_name="umt5_xxl_fp8_e4m3fn_scaled.safetensors", type="wan")
    vae = flow.node("VAELoader", vae_name="wan_2.1_vae.safetensors")
    positive, negative = prompts(
        flow, clip[0], "a red fox trotting through fresh snow, low sun, telephoto", "static, blurred, oversaturated"
    )
    latent = flow.node("EmptyHunyuanLatentVideo", width=832, height=480, length=33)
    shift = flow.node("ModelSamplingSD3", model=model[0], shift=8.0)
    common = {"positive": positive[0], "negative": negative[0], "latent_image": latent[0], "seed": SEED, "steps": 30}
    common |= {"sampler_name": "uni_pc", "scheduler": "simple"}
    plain = flow.node("KSampler", caption="Plain: cfg 6", model=shift[0], cfg=6.0, **common)
    plain_frames = flow.node("VAEDecode", samples=plain[0], vae=vae[0])
    film = {"fps": 16.0, "size": PICTURE}
    plain_save = flow.node("SaveAnimatedWEBP", images=plain_frames[0], filename_prefix="gimbal/plain", **film)
    samg = flow.node("GimbalSAMG", model=shift[0], scope="clip")
    aqclip = flow.node("GimbalAQClip", model=samg[0])
    sampler = flow.node("KSampler", caption="SAMG and AQClip: cfg 4", model=aqclip[0], cfg=4.0, **common)
    frames = flow.node("VAEDecode", samples=sampler[0], vae=vae[0])
    save = flow.node("SaveAnimatedWEBP", images=frames[0], filename_prefix="gimbal/stabilised", **film)
    preview = flow.node("GimbalGuidancePreview", latent=sampler[0], model=aqclip[0])
    picture = flow.node("PreviewImage", images=preview[0], size=STRIP)
    note = flow.note(
        "## SAMG on video\n\nSame seed. `scope: clip` measures all frames by one range, so the guidance does not flicker; AQClip "
        "clips frame by frame.\n\nThe lower sampler runs at two thirds of the upper one's "
        "cfg, because SAMG's mean scale is about 1.5 times cfg. The strip shows the middle frame.",
        height=260,
    )
    x, _ = flow.columns([model, clip, vae, shift], [positive, negative, latent, note])
    _, below = flow.columns([plain], [plain_frames], [plain_save], at=(x + 60, 0))
    flow.columns([samg], [aqclip], [sampler], [frames], [save], at=(x + 60, below + 60))
    flow.columns([preview], [picture], at=(x + 60, below + 700))
    flow.group("Load", [model, clip, vae, shift, positive, negative, latent, note], "load")
    flow.group("Plain CFG", [plain, plain_frames, plain_save])
    flow.group("SAMG and AQClip", [samg, aqclip, sampler, frames, save, preview, picture], "gimbal")


FLUX, T5, CLIP_L, FLUX_VAE = (
    "flux1-dev.safetensors",
    "t5xxl_fp8_e4m3fn_scaled.safetensors",
    "clip_l.safetensors",
    "ae.safetensors",
)
CALIBRATION = "flux1-dev_fp8_e4m3fn"
CALIBRATION_PROMPTS = """photo of an old lighthouse on a cliff at dusk
close portrait of a woman with freckles, soft window light
a red sports car on a mountain road, motion blur
watercolour of a fox in tall grass
macro of a dragonfly on a reed, morning dew"""


def qdrift_calibrate(flow: Workflow) -> None:
    full = flow.node("UNETLoader", caption="Full precision", unet_name=FLUX)
    quantized = flow.node("UNETLoader", caption="Quantized", unet_name=FLUX, weight_dtype="fp8_e4m3fn")
    clip = flow.node("DualCLIPLoader", clip_name1=T5, clip_name2=CLIP_L, type="flux")
    latent = flow.node("EmptySD3LatentImage", width=1024, height=1024)
    calibrate = flow.node(
        "GimbalQDriftCalibrate",
        full_model=full[0],
        quantized_model=quantized[0],
        clip=clip[0],
        prompts=CALIBRATION_PROMPTS,
        latent=latent[0],
        cfg=1.0,
        sampler_name="euler",
        scheduler="simple",
        steps=20,
        runs=5,
        filename=CALIBRATION,
        size=(460, 900),
    )
    report = flow.node("GimbalQDriftReport", stats=calibrate[0], size=(900, 900))
    note = flow.note(
        "## Calibrate once\n\n1. Load the **full-precision** model and the **quantized** one. Here both are the same file, the second "
        "as fp8; a GGUF goes through its own loader.\n2. Choose cfg, sampler, scheduler and steps **as you will use them**.\n"
        "3. Queue. Five runs of each model; one model at a time is in video memory. Cancel and queue again to go on where it "
        "stopped.\n4. The file is written to `models/qdrift`. Use it with the *Q-Drift* node, in the workflow "
        "`qdrift_side_by_side`.\n\nThe report says in one sentence what to expect. At 8 bits that is, as a rule: nothing you can see.",
        height=340,
    )
    load = [full, quantized, clip, latent, note]
    x, _ = flow.columns(load)
    flow.columns([calibrate], [report], at=(x + 60, 0))
    flow.group("Load", load, "load")
    flow.group("Calibrate and report", [calibrate, report], "gimbal")


def qdrift_side_by_side(flow: Workflow) -> None:
    model = flow.node("UNETLoader", caption="Quantized", unet_name=FLUX, weight_dtype="fp8_e4m3fn")
    clip = flow.node("DualCLIPLoader", clip_name1=T5, clip_name2=CLIP_L, type="flux")
    vae = flow.node("VAELoader", vae_name=FLUX_VAE)
    positive, negative = prompts(flow, clip[0], negative="")
    latent = flow.node("EmptySD3LatentImage", width=1024, height=1024)
    common = {"positive": positive[0], "negative": negative[0], "latent_image": latent[0], "seed": SEED, "steps": 20}
    common |= {"cfg": 1.0, "sampler_name": "euler", "scheduler": "simple"}
    plain = flow.node("KSampler", caption="Quantized, plain", model=model[0], **common)
    plain_image = flow.node("VAEDecode", samples=plain[0], vae=vae[0])
    plain_save = flow.node("SaveImage", images=plain_image[0], filename_prefix="gimbal/plain", size=PICTURE)
    stats = flow.node("GimbalQDriftLoad", file=f"{CALIBRATION}.safetensors")
    drift = flow.node("GimbalQDrift", model=model[0], stats=stats[0])
    sampler = flow.node("KSampler", caption="Quantized, corrected", model=drift[0], **common)
    image = flow.node("VAEDecode", samples=sampler[0], vae=vae[0])
    save = flow.node("SaveImage", images=image[0], filename_prefix="gimbal/corrected", size=PICTURE)
    note = flow.note(
        "## Plain against corrected\n\nThe same quantized model, the same seed; below with Q-Drift. The sampler stays what you chose: "
        "the node exchanges it for its corrected form when sampling starts, and says so in the log.\n\nThe statistics must come "
        "from **this** model (workflow `qdrift_calibrate`), at the same cfg and sampler. The coarser the quantization, the more "
        "there is to correct; at 8 bits expect no visible change.",
        height=280,
    )
    load = [model, clip, vae, positive, negative, latent, note]
    x, _ = flow.columns(load[:3] + [latent], [positive, negative, note])
    _, below = flow.columns([plain], [plain_image], [plain_save], at=(x + 60, 0))
    flow.columns([stats, drift], [sampler], [image], [save], at=(x + 60, below + 60))
    flow.group("Load", load, "load")
    flow.group("As it is", [plain, plain_image, plain_save])
    flow.group("Q-Drift", [stats, drift, sampler, image, save], "gimbal")


def multipass(flow: Workflow) -> None:
    """On the demo model, which needs no download."""
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
    note = flow.note(
        "## Two passes on the demo model\n\nThe first pass is shared. The lower branch stabilises its latent before and after the "
        "upscale. For your own model: the template `qsilk_multipass`.",
        height=160,
    )
    x, _ = flow.columns([model, letters, note])
    x, _ = flow.columns([first], at=(x + 60, 0))
    right, below = flow.columns([plain_larger], [plain], [plain_image], at=(x + 60, 0))
    right, _ = flow.columns([before, stable_larger], [after], [stable], [image], at=(x + 60, below + 60))
    flow.columns([sheet], [save], at=(right + 60, 0))
    flow.group("Second pass as it is", [plain_larger, plain, plain_image])
    flow.group("Stabilised between the passes", [before, stable_larger, after, stable, image], "gimbal")


DEMO_RECIPES: tuple[Callable[[Workflow], None], ...] = (multipass,)
RECIPES: tuple[Callable[[Workflow], None], ...] = (
    samg_side_by_side,
    stacked,
    qsilk_multipass,
    samg_video,
    qdrift_calibrate,
    qdrift_side_by_side,
)
