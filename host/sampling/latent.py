"""What the LATENT -> LATENT nodes have in common."""

from __future__ import annotations

import logging
from collections.abc import Callable

from torch import Tensor

from .run import nonfinite_samples, warn_nonfinite

logger = logging.getLogger(__name__)


def on_latent(node: str, latent: dict, apply: Callable[[Tensor], Tensor], settings: str) -> dict:
    """`latent` with its samples changed; masks and the like are kept, and the input, which ComfyUI caches, untouched."""
    samples = latent["samples"]
    if samples.is_nested:
        logger.warning("%s: did nothing. It cannot yet tell the parts of this latent (video, audio) apart.", node)
        return latent
    found = nonfinite_samples(samples)
    if bool(found.any()):
        warn_nonfinite(node, "the latent", found)
    changed = apply(samples)
    logger.info("%s: acted on the latent (%s).", node, settings)
    return {**latent, "samples": changed}
