"""A labelled contact sheet."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

ZOOM, GAP, BAND_GAP, MARGIN, TITLE = 2, 4, 20, 24, 56
PAPER, INK, FAINT = (250, 249, 246), (28, 28, 30), (120, 118, 112)


def contact_sheet(bands: Sequence[Tensor], labels: Sequence[str], title: str, columns: int) -> Tensor:
    """Bands of pictures under one title, each with its label on the left.

    Args:
        bands: pictures (N, H, W, 3) in [0, 1], of equal H and W.
        labels: one for each band; " | " starts a new line.
    Returns:
        One picture (1, height, width, 3) in [0, 1].
    """
    cell_h, cell_w = (ZOOM * side for side in bands[0].shape[1:3])
    rows = [-(-len(images) // columns) for images in bands]
    large, small = ImageFont.load_default(22), ImageFont.load_default(17)
    label_width = max(int(small.getlength(line)) for label in labels for line in label.split(" | ")) + MARGIN
    width = 2 * MARGIN + label_width + columns * (cell_w + GAP) - GAP
    height = 2 * MARGIN + (TITLE if title else 0) + sum(n * (cell_h + GAP) - GAP for n in rows)
    height += BAND_GAP * (len(bands) - 1)
    canvas = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(canvas)
    y = MARGIN
    if title:
        draw.text((MARGIN, y), title, INK, large)
        y += TITLE
    for images, label, band_rows in zip(bands, labels, rows, strict=True):
        for line, text in enumerate(label.split(" | ")):
            draw.text((MARGIN, y + 4 + 24 * line), text, INK if line == 0 else FAINT, small)
        for i, picture in enumerate(images):
            pixels = (picture.clamp(0, 1) * 255).round().byte().cpu().numpy()
            tile = Image.fromarray(pixels).resize((cell_w, cell_h), Image.Resampling.NEAREST)
            place = (MARGIN + label_width + i % columns * (cell_w + GAP), y + i // columns * (cell_h + GAP))
            canvas.paste(tile, place)
        y += band_rows * (cell_h + GAP) - GAP + BAND_GAP
    return torch.from_numpy(np.asarray(canvas).astype(np.float32) / 255)[None]
