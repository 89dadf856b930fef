"""One poster in full precision, quantized and corrected: the picture, its coarsest forms and its grain."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from gimbal.calibration.measures import COMPOSITION_CYCLES, FINEST, Measures, percent_more

from . import halves
from .model import decode_unclipped, latent
from .paired_sampler import Models, PairedSampler
from .quantization import FULL, METHODS, PLAIN

SEED, SAMPLES = 0, 10
ZOOM, GAP, MARGIN, HEAD, LEFT = 2, 6, 20, 100, 190
AMPLIFIED = 2.0  # grain and differences, around a middle grey
PAPER, INK, FAINT = (250, 249, 246), (28, 28, 30), (105, 103, 98)
QUALITY = 78  # of the JPEG: gradients would show the steps of a palette
BANDS = {  # what a row of the sheet shows, with its words
    "the poster": (),
    "composition": (f"up to {COMPOSITION_CYCLES:g} cycles", "a picture"),
    "its error": (f"times {AMPLIFIED:g}, grey: none",),
    "grain": (f"from {FINEST:g} cycles", "a latent position", f"up, times {AMPLIFIED:g}"),
}


def draw(models: Models, path: Path) -> None:
    """The poster whose uncorrected error is the median of seed 0's."""
    sampler = PairedSampler(models, halves.SETTING, halves.FORM, SAMPLES, SEED)
    full = sampler.sample(full=True)
    latents = {FULL: full} | {method: METHODS[method](None, sampler) for method in halves.SHOWN}
    found = {method: halves.of_posters(each, full) for method, each in latents.items()}
    chosen = median(found[PLAIN].error)
    columns = {method: each[chosen].float() for method, each in latents.items()}
    words = {method: _numbers(each, chosen, method) for method, each in found.items()}
    sheet = _sheet(columns, words, f"poster {chosen + 1} of {SAMPLES}")
    sheet.save(path, quality=QUALITY, subsampling=0, optimize=True)


def median(values: Tensor) -> int:
    """Place of the median of values (N,), of two middle ones the larger."""
    return int(values.argsort()[len(values) // 2])


def coarse(state: Tensor) -> Tensor:
    """The part of a picture or latent (C, h, w) of at most COMPOSITION_CYCLES per picture, its mean included."""
    down, across = (torch.fft.fftfreq(size) * size for size in state.shape[-2:])
    return _kept(state, torch.hypot(down[:, None], across[None]) <= COMPOSITION_CYCLES)


def finest(state: Tensor) -> Tensor:
    """The part of a latent of at least FINEST cycles per position."""
    down, across = map(torch.fft.fftfreq, state.shape[-2:])
    return _kept(state, torch.hypot(down[:, None], across[None]) >= FINEST)


def _kept(state: Tensor, frequencies: Tensor) -> Tensor:
    return torch.fft.ifft2(torch.fft.fft2(state) * frequencies).real


def _numbers(found: Measures, chosen: int, method: str) -> tuple[str, ...]:
    if method == FULL:
        return ()
    error, colour, grain, composition = (float(each[chosen]) for each in found)
    return (
        f"error {100 * error:.0f} %, colour {100 * colour:.0f} %",
        f"composition {100 * composition:.0f} %",
        f"grain {100 * percent_more(grain):+.0f} %",
    )


def _rows(state: Tensor, full: Tensor) -> list[Tensor]:
    """Of a latent, in the order of BANDS, each a picture (3, H, W) around 0."""
    picture, theirs, grain = decode_unclipped(torch.stack((state, full, AMPLIFIED * finest(state))))
    return [picture, coarse(picture), AMPLIFIED * coarse(picture - theirs), grain]


def _sheet(columns: dict[str, Tensor], words: dict[str, tuple[str, ...]], which: str) -> Image.Image:
    side = ZOOM * latent.BLOCK * columns[FULL].shape[-1]
    size = (LEFT + len(columns) * (side + GAP) + MARGIN, HEAD + MARGIN + len(BANDS) * (side + GAP))
    sheet = Image.new("RGB", size, PAPER)
    pen, large, small = ImageDraw.Draw(sheet), ImageFont.load_default(19), ImageFont.load_default(15)
    for row, (title, notes) in enumerate(BANDS.items()):
        place = (MARGIN, HEAD + row * (side + GAP) + 4)
        _lines(pen, place, title, notes if row else (which,), large, small)
    for column, (method, state) in enumerate(columns.items()):
        x = LEFT + column * (side + GAP)
        _lines(pen, (x, MARGIN - 8), _title(method), words[method], large, small)
        for row, part in enumerate(_rows(state, columns[FULL])):
            sheet.paste(_tile(part, side), (x, HEAD + row * (side + GAP)))
    return sheet


def _title(method: str) -> str:
    return method if method == FULL else f"{halves.FORM.name}, {'plain' if method == PLAIN else method}"


def _lines(
    pen: ImageDraw.ImageDraw, place: tuple[int, int], title: str, notes: tuple[str, ...], *fonts: object
) -> None:
    x, y = place
    pen.text((x, y), title, INK, fonts[0])
    for line, note in enumerate(notes):
        pen.text((x, y + 24 + 19 * line), note, FAINT, fonts[1])


def _tile(part: Tensor, side: int) -> Image.Image:
    pixels = ((part.clamp(-1, 1) / 2 + 0.5) * 255).round().byte().movedim(0, -1).numpy()
    return Image.fromarray(np.ascontiguousarray(pixels)).resize((side, side), Image.Resampling.NEAREST)
