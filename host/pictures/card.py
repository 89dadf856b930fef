"""A calibration's verdict as a small picture, in letters that can be read at a node's own width."""

from __future__ import annotations

import textwrap
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ...calibration.text import printable
from ...calibration.verdict import Outcome, Verdict
from .maps import FAINT, INK, PAPER

# A node is about 220 pixels wide, so all of this is seen at half its size.
WIDTH, MARGIN, BAND = 480, 24, 72
HEADING, BODY, SMALL = 36, 27, 21  # sizes of letters
SPACING = 1.25  # of lines
MOST_LINES = 9  # of one paragraph
COLOURS = {
    Outcome.HELPS: (32, 122, 76),
    Outcome.NOTHING: (84, 92, 104),
    Outcome.CANNOT: (168, 74, 28),
    Outcome.UNTRIED: (43, 92, 140),
}


def card(verdict: Verdict, path: Path | None) -> Tensor:
    """The outcome, by how much, what to do next, what that costs, and where the file is; (1, height, width, 3) in [0, 1].

    Args:
        path: of the statistics; None where they are in no file.
    """
    good, bad = COLOURS[Outcome.HELPS], COLOURS[Outcome.CANNOT]
    marked = [(line, SMALL, {"+": good, "=": INK}.get(line[:1], bad)) for line in verdict.seen]
    place = f"File: {printable(Path(*path.parts[-3:]), 120)}" if path else "Not saved in models/qdrift."
    paragraphs = [
        (f"{verdict.amount[:1].upper()}{verdict.amount[1:]}.", BODY, INK),
        *marked,
        (verdict.next_step, BODY, INK),
        *([(verdict.cost, SMALL, FAINT)] if verdict.cost else []),
        (place, SMALL, FAINT),
    ]
    blocks = [(_wrapped(words, size), size, colour) for words, size, colour in paragraphs]
    height = BAND + sum(MARGIN // 2 + round(len(lines) * size * SPACING) for lines, size, _ in blocks) + MARGIN
    canvas = Image.new("RGB", (WIDTH, height), PAPER)
    draw = ImageDraw.Draw(canvas)
    draw.rectangle((0, 0, WIDTH, BAND), COLOURS[verdict.outcome])
    draw.text((MARGIN, BAND / 2), verdict.outcome.value, (255, 255, 255), ImageFont.load_default(HEADING), anchor="lm")
    y = float(BAND)
    for lines, size, colour in blocks:
        y += MARGIN / 2
        for line in lines:
            draw.text((MARGIN, y), line, colour, ImageFont.load_default(size))
            y += size * SPACING
    return torch.from_numpy(np.asarray(canvas).astype(np.float32) / 255)[None]


def _wrapped(words: str, size: int) -> list[str]:
    """Lines no wider than the card; a word that is wider, as a path may be, is broken."""
    words = words.replace(" %", "\N{NO-BREAK SPACE}%")
    font, room = ImageFont.load_default(size), WIDTH - 2 * MARGIN
    letters = len(words)
    while letters > 1:
        lines = textwrap.wrap(words, letters, break_on_hyphens=False)
        if all(font.getlength(line) <= room for line in lines):
            return [line.replace("\N{NO-BREAK SPACE}", " ") for line in lines[:MOST_LINES]]
        letters = min(letters - 1, max(map(len, lines)) - 1)
    return [words]
