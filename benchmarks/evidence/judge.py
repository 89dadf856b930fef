"""What samples are compared with: a classifier of real pictures, and statistics of real pictures it has not seen.

Real pictures go through the demo's autoencoder first, so that its losses count for or against no method. Made once
(a few minutes) and kept in a file.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

from .metrics import Gaussian, frechet, kurtosis, tail_share
from .model import ROOT, decode_unclipped, latent, letters, recognise

PICTURES, SEED = 8000, 5150  # real pictures; the seed of neither model, classifier nor recognise.py's test
FEATURES, COMPONENTS = 64, 48  # principal components kept of the classifier's features and of the pixels
SOURCES = ("letters.py", "recognise.py", "gimbal_demo/latent.py", "gimbal_demo/conditioning.py")


class Judge:
    """Measures of pictures. `tensors` holds all it knows, as made by `prepare`."""

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        self.tensors = tensors
        self.classifier = recognise.build_classifier().eval().requires_grad_(False)
        prefix = "classifier."
        self.classifier.load_state_dict(
            {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
        )
        self.real = {
            space: Gaussian(tensors[f"{space}.mean"], tensors[f"{space}.covariance"])
            for space in ("features", "pixels")
        }

    def measures(self, latents: Tensor, labels: Tensor) -> dict[str, float]:
        """latents (N, 16, h, w), in the network's units, and the classes they were asked for."""
        open_ended = decode_unclipped(latents)
        pictures = open_ended.clamp(-1, 1)
        raw = _raw_features(self.classifier, pictures)
        logits = self.classifier[-1](raw)
        asked = F.one_hot(labels, logits.shape[1]).bool()
        margin = logits[asked] - logits.masked_fill(asked, -torch.inf).amax(1)
        found = self._gaussians(raw, pictures)
        distances = {f"fd_{space}": frechet(found[space], real) for space, real in self.real.items()}
        mean, std = self.tensors["latent.mean"], self.tensors["latent.std"]
        return {
            "accuracy": float((margin > 0).float().mean()),
            "margin": float(margin.mean()),
            **distances,
            "saturation": float((open_ended.abs() > 1).float().mean()),
            "tail": tail_share(latents, mean, std),
            "kurtosis": kurtosis(latents),
            "spread": float((latents.std((0, 2, 3)) / std).mean()),
        }

    def gaussians(self, latents: Tensor) -> dict[str, Gaussian]:
        """Of the samples in both spaces, to be compared with those of other samples."""
        pictures = decode_unclipped(latents).clamp(-1, 1)
        return self._gaussians(_raw_features(self.classifier, pictures), pictures)

    def _gaussians(self, raw: Tensor, pictures: Tensor) -> dict[str, Gaussian]:
        spaces = {"features": raw, "pixels": pictures.flatten(1)}
        return {space: Gaussian.of(self.project(space, values)) for space, values in spaces.items()}

    def project(self, space: str, values: Tensor) -> Tensor:
        return (values - self.tensors[f"{space}.centre"]) @ self.tensors[f"{space}.axes"]


def load(folder: Path) -> Judge:
    """Makes what is missing; a file from other sources has another name."""
    digest = hashlib.sha256(b"".join((ROOT / "demo" / name).read_bytes() for name in SOURCES))
    digest.update(repr((PICTURES, SEED, FEATURES, COMPONENTS)).encode())
    path = folder / f"judge-{digest.hexdigest()[:12]}.safetensors"
    if not path.exists():
        print("evidence: training the classifier and drawing real pictures (a few minutes, once) ...", flush=True)
        folder.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        save_file({name: value.contiguous() for name, value in prepare().items()}, partial)
        partial.replace(path)
    return Judge(load_file(path))


def prepare() -> dict[str, Tensor]:
    with torch.inference_mode(False):  # whoever asks for measures has it on
        network = recognise.classifier()
    with torch.inference_mode():
        pictures, _ = letters.pictures(PICTURES, SEED)
        latents = torch.cat([latent.encode(part) for part in pictures.split(500)])
        known = {"latent.mean": latents.mean((0, 2, 3)), "latent.std": latents.std((0, 2, 3))}
        pictures = torch.cat([decode_unclipped(part) for part in latents.split(500)]).clamp(-1, 1)
        raw = torch.cat([_raw_features(network, part) for part in pictures.split(500)])
        known |= {f"classifier.{name}": value for name, value in network.state_dict().items()}
        known |= _space("features", raw, FEATURES, raw.std(0).clamp(min=1e-6))
        pixels = pictures.flatten(1)
        del pictures, raw
        known |= _space("pixels", pixels, COMPONENTS, torch.ones(()))
    return known


def _space(name: str, values: Tensor, count: int, std: Tensor) -> dict[str, Tensor]:
    """Principal axes of values / std, scaled so that the components kept have a mean variance of 1."""
    centre = values.mean(0)
    centred = (values - centre) / std
    torch.manual_seed(0)
    _, _, axes = torch.pca_lowrank(centred, q=count, center=False, niter=4)
    components = centred @ axes
    axes = axes / components.var(0).mean().sqrt() / std.reshape(-1, 1)
    gaussian = Gaussian.of((values - centre) @ axes)
    return {
        f"{name}.centre": centre,
        f"{name}.axes": axes,
        f"{name}.mean": gaussian.mean,
        f"{name}.covariance": gaussian.covariance,
    }


def _raw_features(network: torch.nn.Sequential, pictures: Tensor) -> Tensor:
    return torch.cat([network[:-1](part) for part in pictures.split(500)])
