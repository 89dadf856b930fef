"""Q-Drift from calibration to pictures in one graph, without a quantized file: on any model that the user has."""

from __future__ import annotations

from ..author import Workflow
from .files import SD15
from .parts import SEED, compare, look, model_files, picture, prompts
from .qdrift import PROMPTS


def qdrift_simulated(flow: Workflow) -> None:
    checkpoint = flow.node("CheckpointLoaderSimple", ckpt_name=SD15)
    positive, negative = prompts(flow, checkpoint[1])
    latent = flow.node("EmptyLatentImage", width=512, height=512)
    rounded = flow.node("GimbalSimulateQuantization", model=checkpoint[0], preset="W4A8")
    as_used = {"cfg": 7.5, "sampler_name": "euler", "scheduler": "normal", "steps": 20}
    stats = flow.node(
        "GimbalQDriftCalibrate",
        full_model=checkpoint[0],
        quantized_model=rounded[0],
        clip=checkpoint[1],
        prompts=PROMPTS,
        latent=latent[0],
        filename="simulated_W4A8",
        size=(420, 860),
        **as_used,
    )
    common = {"positive": positive[0], "negative": negative[0], "latent_image": latent[0], "seed": SEED, **as_used}
    full = flow.node("KSampler", caption="Full precision", model=checkpoint[0], **common)
    full_image, full_save = picture(flow, full, checkpoint[2], "full precision")
    plain = flow.node("KSampler", caption="Rounded, plain", model=rounded[0], **common)
    plain_image, plain_save = picture(flow, plain, checkpoint[2], "plain")
    drift = flow.node("GimbalQDrift", model=rounded[0], stats=stats[0])
    sampler = flow.node("KSampler", caption="Rounded, corrected", model=drift[0], **common)
    image, save = picture(flow, sampler, checkpoint[2], "corrected")
    note = look(
        flow,
        "Q-Drift without a quantized file",
        "**Simulate Quantization** rounds the model while it runs; it saves nothing and is for trying. Then this calibrates, "
        "shows its report, and draws one seed three times: rounded, corrected, and in full precision.",
        "Does the lower picture lie nearer to full precision? Look at contrast, colour and grain.",
        "*advised* takes what helped on the calibration's held-out runs, or nothing; try *drift*, *moments* and *both*.",
        "Try preset W8A8, W4A4 and W3A4, and rank 32 (as SVDQuant): each calibrates anew.",
        "Any model will do: exchange the loader. The second queue takes the calibration from the first.",
    )
    compare(
        flow,
        [[checkpoint, positive, negative, latent, model_files(flow)]],
        note,
        ("Rounded, and what it should be", [[plain, plain_image], [plain_save], [full, full_image], [full_save]]),
        ("Rounded, with Q-Drift", [[drift], [sampler, image], [save]]),
        before=("Round and calibrate", [[rounded], [stats]]),
    )
