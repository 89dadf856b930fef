"""What needs no download: how far a picture is from its reference, and how strong its contrast and colours are."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

LUMA = (0.2126, 0.7152, 0.0722)  # Rec. 709
WINDOW, SPREAD = 11, 1.5  # of SSIM's Gaussian, in pixels
K1, K2 = 0.01, 0.03


class Measure(NamedTuple):
    title: str
    better: int  # -1: less is better; 1: more is; 0: neither


# In the order of the report. The first ones are of a picture and its reference.
MEASURES = {
    "psnr": Measure("PSNR, dB", 1),
    "ssim": Measure("SSIM", 1),
    "mse": Measure("MSE", -1),
    "contrast_off": Measure("contrast, off the reference", -1),
    "saturation_off": Measure("saturation, off the reference", -1),
    "contrast": Measure("contrast", 0),
    "saturation": Measure("saturation", 0),
    "clip": Measure("CLIP score", 1),
    "fid": Measure("FID", -1),
}
MOST_DB = 100.0  # of pictures that are equal


def of_one(pictures: Tensor) -> dict[str, float]:
    """pictures (N, 3, H, W) in [0, 1]; means over N."""
    return {"contrast": float(contrast(pictures).mean()), "saturation": float(saturation(pictures).mean())}


def of_pair(pictures: Tensor, reference: Tensor) -> dict[str, float]:
    """Both (N, 3, H, W) in [0, 1]; means over N. ValueError if they differ in shape."""
    if pictures.shape != reference.shape:
        raise ValueError(
            f"a variant's pictures are {tuple(pictures.shape)}, the reference's {tuple(reference.shape)} (number, colours, "
            "height, width); let both workflows make the same number of pictures of the same size."
        )
    squares = (pictures - reference).double().square().flatten(1).mean(1)
    own, theirs = of_one(pictures), of_one(reference)
    return {
        "psnr": float((-10 * squares.log10()).clamp(max=MOST_DB).mean()),
        "ssim": float(ssim(pictures, reference).mean()),
        "mse": float(squares.mean()),
        **{f"{name}_off": abs(own[name] - theirs[name]) for name in own},
    }


def contrast(pictures: Tensor) -> Tensor:
    """Standard deviation of a picture's luma, (N,)."""
    weights = pictures.new_tensor(LUMA).reshape(1, 3, 1, 1)
    return (pictures * weights).sum(1).flatten(1).std(1, correction=0)


def saturation(pictures: Tensor) -> Tensor:
    """Mean distance of a pixel's largest colour from its smallest, (N,)."""
    return (pictures.amax(1) - pictures.amin(1)).flatten(1).mean(1)


def ssim(a: Tensor, b: Tensor) -> Tensor:
    """Structural similarity (Wang et al. 2004), (N,): the mean over colours and over places with a whole window."""
    if min(a.shape[-2:]) < WINDOW:
        raise ValueError(f"SSIM needs pictures of {WINDOW} pixels or more a side, got {tuple(a.shape[-2:])}.")
    x, y = a.double(), b.double()
    means = [_blurred(each) for each in (x, y, x * x, y * y, x * y)]
    mean_x, mean_y = means[:2]
    var_x, var_y, cov = (
        square - product for square, product in zip(means[2:], (mean_x**2, mean_y**2, mean_x * mean_y), strict=True)
    )
    c1, c2 = K1**2, K2**2
    similar = (2 * mean_x * mean_y + c1) * (2 * cov + c2)
    return (similar / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))).flatten(1).mean(1)


def _blurred(pictures: Tensor) -> Tensor:
    places = torch.arange(WINDOW, dtype=pictures.dtype) - WINDOW // 2
    kernel = torch.exp(-0.5 * (places / SPREAD) ** 2)
    kernel = kernel / kernel.sum()
    rows = pictures.flatten(0, 1)[:, None]
    rows = F.conv2d(F.conv2d(rows, kernel.reshape(1, 1, 1, -1)), kernel.reshape(1, 1, -1, 1))
    return rows.reshape(*pictures.shape[:2], *rows.shape[-2:])
