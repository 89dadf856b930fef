"""Measures by other networks, through torchmetrics: CLIP score and FID. Optional: they need packages and a download."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from devkit.paths import Stop

CLIP = "openai/clip-vit-base-patch16"
INCEPTION = 2048  # features of the usual FID


class ClipScore:
    """100 times the cosine between a picture's and its prompt's embedding, at least 0. Stop if it is not to be had."""

    def __init__(self, model: str = CLIP) -> None:
        try:
            from torchmetrics.multimodal.clip_score import CLIPScore

            self._metric = CLIPScore(model_name_or_path=model)
        except (ImportError, OSError) as error:
            raise Stop(_lacking("the CLIP score", "torchmetrics transformers", error)) from error

    def __call__(self, pictures: Tensor, prompt: str) -> float:
        """pictures (N, 3, H, W) in [0, 1]; their mean."""
        with torch.inference_mode():
            return float(self._metric(_bytes(pictures), [prompt] * len(pictures)))


class Fid:
    """Frechet distance between two sets of pictures, in the features of a network. Stop if it is not to be had.

    features: a number of Inception's features, or a module from uint8 pictures (N, 3, H, W) to features (N, D).
    """

    def __init__(self, features: int | nn.Module = INCEPTION) -> None:
        try:
            from torchmetrics.image.fid import FrechetInceptionDistance

            self._metric = FrechetInceptionDistance(feature=features)
        except (ImportError, OSError) as error:
            raise Stop(_lacking("FID", "torchmetrics torch-fidelity", error)) from error

    def __call__(self, pictures: Iterable[Tensor], real: Iterable[Tensor]) -> float:
        """Both: tensors (N, 3, H, W) in [0, 1], of any sizes. ValueError from a set of less than two."""
        self._metric.reset()
        counts = [0, 0]
        with torch.inference_mode():
            for which, tensors in enumerate((pictures, real)):
                for tensor in tensors:
                    self._metric.update(_bytes(tensor), real=bool(which))
                    counts[which] += len(tensor)
            if min(counts) < 2:
                raise ValueError(f"FID needs two pictures or more on each side, got {counts[0]} and {counts[1]}.")
            return float(self._metric.compute())


def _bytes(pictures: Tensor) -> Tensor:
    return (pictures * 255).round().to(torch.uint8)


def _lacking(what: str, packages: str, error: Exception) -> str:
    reason = str(error).strip().splitlines()[0]
    return (
        f"{what} is not to be had here: {reason} It needs `pip install {packages}` and, at first, a download of its "
        "network. All other measures do without."
    )
