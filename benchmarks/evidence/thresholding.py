"""Dynamic thresholding for latents, as its public description gives it; ComfyUI has no node of it.

Source: the readme of mcmonkeyprojects/sd-dynamic-thresholding: guide at the scale that is asked for and at a lower one to mimic;
about each channel's mean, clamp the first to its percentile of absolute values, and give it the second's largest one.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def thresholded(model: Any, mimic: float = 0.5, percentile: float = 1.0) -> Any:
    """mimic: scale to mimic, as a share of cfg. percentile: of absolute values, 1 being the largest."""

    def combined(args: dict) -> Tensor:
        cfg = args["cond_scale"]
        asked, mimicked = (torch.lerp(args["uncond"], args["cond"], scale) for scale in (cfg, max(1.0, mimic * cfg)))
        return threshold(asked, mimicked, percentile)

    patched = model.clone()
    patched.set_model_sampler_cfg_function(combined)
    return patched


def threshold(asked: Tensor, mimicked: Tensor, percentile: float) -> Tensor:
    """Both (B, C, *spatial); the result has asked's means."""
    rows, wanted = asked.flatten(2), mimicked.flatten(2)
    mean = rows.mean(2, keepdim=True)
    centred = rows - mean
    most = (wanted - wanted.mean(2, keepdim=True)).abs().amax(2, keepdim=True)
    reach = torch.maximum(most, torch.quantile(centred.abs(), percentile, 2, keepdim=True)).clamp_min(1e-8)
    return (centred.clamp(-reach, reach) / reach * most + mean).view_as(asked)
