"""A calibration's report as an IMAGE: plots where matplotlib is installed, the table as a picture where it is not."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ...calibration import plots, report
from ...calibration.residual import Residual
from ...calibration.statistics import QDriftStatistics
from .maps import INK, MARGIN, PAPER

PITCH, LINE = 9, 20  # pixels of a letter and a line: the font is not monospaced, the table is
LETTERS = 140  # in a line


def picture(statistics: QDriftStatistics, residuals: Sequence[Residual] | None = None) -> Tensor:
    """(1, height, width, 3) in [0, 1]."""
    if plots.available():
        pixels = plots.picture(statistics, residuals)
    else:
        words = report.text(statistics, residuals)
        pixels = written(f"{words}\nPlots need matplotlib (pip install matplotlib in ComfyUI's Python).")
    return torch.from_numpy(pixels.astype(np.float32) / 255)[None]


def written(words: str) -> np.ndarray:
    """Text in columns, (height, width, 3) uint8."""
    lines = [
        part
        for line in words.splitlines()
        for part in (textwrap.wrap(line, LETTERS) if len(line) > LETTERS else [line])
    ]
    font = ImageFont.load_default(15)
    width = 2 * MARGIN + PITCH * max(map(len, lines), default=1)
    canvas = Image.new("RGB", (width, 2 * MARGIN + LINE * len(lines)), PAPER)
    draw = ImageDraw.Draw(canvas)
    for row, line in enumerate(lines):
        for column, letter in enumerate(line):
            if letter != " ":
                draw.text((MARGIN + PITCH * (column + 0.5), MARGIN + LINE * row), letter, INK, font, anchor="ma")
    return np.asarray(canvas)
