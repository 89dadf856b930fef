"""The report's contact sheets: rows are methods, columns the first samples of seed 0."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from . import posters, qsilk
from . import quantization as q
from .formats import HEAVY, NumberFormat
from .model import GuidedSampler, Network, decode_unclipped
from .paired_sampler import Models, PairedSampler
from .quantization_report import TITLES
from .subjects import SETTINGS, Setting

from gimbal_demo.sheet import contact_sheet  # isort: skip  (on the path once the model's module is imported)

COLUMNS = 10  # each class once
COLOURS = 256  # of a sheet's palette


def guided(network: Network, samples: int, guidance: float, path: Path) -> None:
    """Plain and limited, at SHEET_STEPS. samples: of a seed, as its noise depends on the number."""
    start = GuidedSampler(network, samples, 0)
    bands = {
        " | ".join(name.split(", ")): start.sample(qsilk.SHEET_STEPS, "euler", rule(guidance), batches=1)[:COLUMNS]
        for name, rule in qsilk.methods().items()
    }
    title = (
        f"Guidance {guidance:g}, {qsilk.SHEET_STEPS} Euler steps, the first {COLUMNS} samples of seed 0 in every row"
    )
    _save(bands, title, COLUMNS, path)


def quantized(models: Models, path: Path) -> None:
    """Full precision, quantized, corrected; Euler."""
    setting, form = SETTINGS[models.full.kind][0], HEAVY[0]
    title = f"{TITLES[setting.kind, setting.solver]}: the first {COLUMNS} samples of seed 0 in every row"
    methods = {form.name: q.PLAIN} | _labelled(form, q.DRIFT, q.MOMENTS, q.LAYERS, q.LAYERS_AND_MOMENTS)
    _save(_bands(models, setting, form, COLUMNS, methods), title, COLUMNS, path)


def larger(models: Models, path: Path) -> None:
    """The same of posters, at half their size."""
    setting, columns = posters.SETTINGS[posters.LARGE], COLUMNS // 2
    title = f"Poster model, latents of {setting.size}: the first {columns} posters of seed 0 in every row"
    methods = _labelled(posters.FORM, q.PLAIN, q.MOMENTS, q.LAYERS)
    _save(_bands(models, setting, posters.FORM, columns, methods), title, columns, path, shrink=2)


def _labelled(form: NumberFormat, *methods: str) -> dict[str, str]:
    return {f"{form.name} | {method}": method for method in methods}


def _bands(
    models: Models, setting: Setting, form: NumberFormat, samples: int, methods: dict[str, str]
) -> dict[str, Tensor]:
    """Latents by label; methods by label."""
    sampler = PairedSampler(models, setting, form, samples, 0)
    corrected = {label: q.METHODS[method](None, sampler) for label, method in methods.items()}
    return {q.FULL: sampler.sample(full=True)} | corrected


def _save(bands: dict[str, Tensor], title: str, columns: int, path: Path, shrink: int = 1) -> None:
    """bands: latents (N, C, h, w) by label."""
    pictures = [F.avg_pool2d(decode_unclipped(each).clamp(-1, 1), shrink) for each in bands.values()]
    sheet = contact_sheet([each.movedim(1, -1) / 2 + 0.5 for each in pictures], list(bands), title, columns)
    pixels = (sheet[0].numpy() * 255).round().astype(np.uint8)
    Image.fromarray(pixels).quantize(COLOURS, Image.Quantize.MEDIANCUT).save(path, optimize=True)
