"""A model's own linear way from latents to colours, as ComfyUI's previews take it."""

from __future__ import annotations

import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ..calibration.measures import Decode


def latent_decoder(model: ModelPatcher) -> Decode | None:
    """From latents in the sampler's units, (B, C, *spatial), to red, green and blue, (B, 3, *spatial), about -1 to 1.

    Source: ComfyUI's latent_preview.Latent2RGBPreviewer. None where the latent format has no such factors, or
    inherits those of another number of channels.
    """
    latent_format = model.get_model_object("latent_format")
    factors = getattr(latent_format, "latent_rgb_factors", None)
    reshape = getattr(latent_format, "latent_rgb_factors_reshape", None)  # of formats that pack patches into channels
    if factors is None or (reshape is None and len(factors) != latent_format.latent_channels):
        return None
    weight = torch.tensor(factors, dtype=torch.float64, device="cpu")  # (C, 3)
    bias = getattr(latent_format, "latent_rgb_factors_bias", None)
    offset = torch.tensor(bias if bias is not None else [0.0] * 3, dtype=torch.float64, device="cpu")

    def decode(latent: Tensor) -> Tensor:
        unpacked = latent if reshape is None else reshape(latent)
        return (unpacked.double().movedim(1, -1) @ weight + offset).movedim(-1, 1)

    return decode
