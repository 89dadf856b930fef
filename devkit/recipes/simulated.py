"""From full precision to 4 bits and back in one graph, without a quantized file: on any model that the user has."""

from __future__ import annotations

from ..author import Workflow
from .files import SD15
from .parts import dials, model_files, prompts
from .qdrift import calibrated, three


def four_bits(flow: Workflow) -> None:
    checkpoint = flow.node("CheckpointLoaderSimple", ckpt_name=SD15)
    positive, negative = prompts(flow, checkpoint[1])
    latent = flow.node("EmptyLatentImage", width=512, height=512)
    seed, cfg = dials(flow, 7.5)
    rounded = flow.node("GimbalSimulateQuantization", model=checkpoint[0], preset="W4A4")
    as_used = {"cfg": cfg[0], "sampler_name": "euler", "scheduler": "normal", "steps": 20}
    stats = calibrated(flow, checkpoint, rounded, checkpoint[1], latent, "simulated_W4A4", as_used)
    three(
        flow,
        [[checkpoint, positive, negative, latent, seed, cfg, model_files(flow)]],
        (checkpoint, rounded, stats),
        {"positive": positive[0], "negative": negative[0], "latent_image": latent[0], "seed": seed[0], **as_used},
        checkpoint[2],
        [
            "**Simulate Quantization** rounds the model to 4 bits while it runs; it saves nothing and is for trying. Then this "
            "calibrates, shows its report, and draws one seed three times.",
            "Does the right picture lie nearer to the left one than the middle one does? Look at colour and contrast.",
            "*advised* takes what helped on the calibration's held-out runs, or nothing.",
            "Try preset W8A8, W4A8 and W3A4, and rank 32 (as SVDQuant): each calibrates anew.",
            "Any model will do: exchange the loader. The second run takes the calibration from the first.",
        ],
    )
