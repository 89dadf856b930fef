"""Q-Drift on a GGUF of Flux, loaded by city96's pack."""

from __future__ import annotations

from ..author import Node, Workflow
from . import qdrift
from .files import FLUX, FLUX_GGUF

CALIBRATION = "flux1-dev_Q4_K_S"
PACK = "The quantized loader is of the pack [ComfyUI-GGUF](https://github.com/city96/ComfyUI-GGUF); install it with the Manager."


def loader(flow: Workflow) -> Node:
    return flow.node("UnetLoaderGGUF", caption="Quantized (ComfyUI-GGUF)", unet_name=FLUX_GGUF)


def qdrift_gguf_calibrate(flow: Workflow) -> None:
    full = flow.node("UNETLoader", caption="Full precision", unet_name=FLUX)
    qdrift.calibrate(
        flow,
        full,
        loader(flow),
        CALIBRATION,
        [
            PACK,
            "Both must be the **same** model: the GGUF of the full-precision file above it. Not enough memory for both? Record "
            "Trajectory and Calibrate from Trajectory do the same in two workflows.",
            "Choose cfg, sampler, scheduler, steps and size **as you will use them**, then queue; Cancel and queue again to go on.",
            "The file goes to `models/qdrift`; the workflow qdrift_gguf_side_by_side uses it.",
            "The report says in one sentence what to expect: more at Q3 and Q4 than at Q6 and Q8. *drift and moments* takes "
            "about twice the time of drift alone, and is for such coarse ones.",
        ],
    )


def qdrift_gguf_side_by_side(flow: Workflow) -> None:
    qdrift.use(
        flow,
        loader(flow),
        CALIBRATION,
        [
            PACK,
            "The same GGUF, the same seed; below with **Q-Drift**, from the file that qdrift_gguf_calibrate wrote.",
            "Look at fine texture, at flat areas that turned grainy, and at colour casts.",
            "correction *advised* takes what helped in the calibration's trial, or nothing; try *moments* and *both* too.",
            "The coarser the quantization, the more there is to correct: compare Q3 or Q4 with Q8, each with its own file.",
            "strength 0 is exactly the upper picture. No difference you like? Take it out again.",
        ],
    )
