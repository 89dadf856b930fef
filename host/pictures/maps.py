"""Maps as a picture to look at: rows of small panels with a colour scale and numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

PANEL, GAP, MARGIN, BAR = 176, 12, 24, 14
PAPER, INK, FAINT = (250, 249, 246), (28, 28, 30), (110, 108, 102)
# Dark to light in even steps of lightness, readable to the colour-blind and in grey: viridis at nine points.
COLOURS = np.array(
    [(68, 1, 84), (71, 44, 122), (59, 81, 139), (44, 113, 142), (33, 144, 141)]
    + [(39, 173, 129), (92, 200, 99), (170, 220, 50), (253, 231, 37)],
    dtype=np.float64,
)


@dataclass(frozen=True)
class Row:
    """Panels of one quantity."""

    label: str
    maps: Sequence[Tensor]  # (h, w) each
    captions: Sequence[str]
    low: float | None = None  # ends of the colour scale; None: each panel has its own, and says it
    high: float | None = None

    def range(self, values: Tensor) -> tuple[float, float]:
        if self.low is None or self.high is None:
            return float(values.min()), float(values.max())
        return self.low, self.high

    def lines(self) -> list[list[str]]:
        """Below each panel."""
        if self.low is not None:
            return [caption.splitlines() for caption in self.captions]
        ranges = (" .. ".join(map(_number, self.range(values))) for values in self.maps)
        return [[*caption.splitlines(), span] for caption, span in zip(self.captions, ranges, strict=True)]


def strip(title: str, notes: Sequence[str], rows: Sequence[Row]) -> Tensor:
    """Rows of panels under a title and a few lines of text, (1, height, width, 3) in [0, 1]."""
    heading, text, small = (ImageFont.load_default(size) for size in (22, 16, 14))
    words = [line for row in rows for lines in row.lines() for line in lines]
    pitch = GAP + int(max([0.0, *map(small.getlength, words), *(_panel_size(row.maps[0])[0] for row in rows)]))
    columns = max((len(row.maps) for row in rows), default=0)
    widest = max(heading.getlength(title), *map(text.getlength, (*notes, *(row.label for row in rows))), 0.0)
    width = int(max(widest, columns * pitch + BAR + 64)) + 2 * MARGIN
    below = [18 * max(map(len, row.lines())) + 12 for row in rows]
    height = 2 * MARGIN + 34 + 22 * len(notes)
    height += sum(32 + _panel_size(row.maps[0])[1] + under for row, under in zip(rows, below, strict=True))
    canvas = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(canvas)
    draw.text((MARGIN, MARGIN), title, INK, heading)
    y = MARGIN + 34
    for line in notes:
        draw.text((MARGIN, y), line, FAINT, text)
        y += 22
    for row, under in zip(rows, below, strict=True):
        draw.text((MARGIN, y + 8), row.label, INK, text)
        y += 32
        size = _panel_size(row.maps[0])
        for i, (values, lines) in enumerate(zip(row.maps, row.lines(), strict=True)):
            panel = Image.fromarray(_coloured(values.numpy(), *row.range(values)))
            x = MARGIN + i * pitch
            canvas.paste(panel.resize(size, Image.Resampling.NEAREST), (x, y))
            draw.multiline_text((x, y + size[1] + 4), "\n".join(lines), FAINT, small)
        _scale(canvas, draw, (MARGIN + columns * pitch, y, size[1]), row, small)
        y += size[1] + under
    return torch.from_numpy(np.asarray(canvas).astype(np.float32) / 255)[None]


def _panel_size(values: Tensor) -> tuple[int, int]:
    height, width = values.shape
    zoom = PANEL / max(height, width)
    return max(1, round(width * zoom)), max(1, round(height * zoom))


def _scale(
    canvas: Image.Image,
    draw: ImageDraw.ImageDraw,
    place: tuple[int, int, int],
    row: Row,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
) -> None:
    x, y, height = place
    ramp = np.linspace(1, 0, max(height, 2))[:, None].repeat(BAR, 1)
    canvas.paste(Image.fromarray(_coloured(ramp, 0.0, 1.0)), (x, y))
    low = "low" if row.low is None else _number(row.low)
    high = "high" if row.high is None else _number(row.high)
    draw.text((x + BAR + 6, y - 2), high, FAINT, font)
    draw.text((x + BAR + 6, y + height - 16), low, FAINT, font)


def _coloured(values: np.ndarray, low: float, high: float) -> np.ndarray:
    share = np.clip(np.nan_to_num((values - low) / max(high - low, 1e-30)), 0, 1) * (len(COLOURS) - 1)
    below = np.minimum(share.astype(int), len(COLOURS) - 2)
    part = (share - below)[..., None]
    return (COLOURS[below] * (1 - part) + COLOURS[below + 1] * part).round().astype(np.uint8)


def _number(value: float) -> str:
    return f"{value:.3g}"
