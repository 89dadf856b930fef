"""What the LATENT -> LATENT nodes have in common."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from ..messages import Messages
from .run import nonfinite_samples, warn_nonfinite


def on_latent(messages: Messages, latent: dict, apply: Callable[[Tensor], Tensor], settings: str) -> dict:
    """`latent` with its samples changed; masks and the like are kept, and the input, which ComfyUI caches, untouched."""
    samples = latent["samples"]
    if samples.is_nested:
        messages.warning("did nothing. It cannot yet tell the parts of this latent (video, audio) apart.")
        return latent
    found = nonfinite_samples(samples)
    if bool(found.any()):
        warn_nonfinite(messages, "the latent", found)
    changed = apply(samples)
    messages.info(f"acted on the latent ({settings}).")
    return {**latent, "samples": changed}
