"""Larger pictures of the demo's world: posters of one letter, each time in another face, in the colours of one picture.

A cell of a poster is as large as a picture of `letters`, so that what judges those judges its cells.
"""

from __future__ import annotations

import torch
from torch import Generator, Tensor

import letters
from gimbal_demo.conditioning import CLASSES


def masks(glyphs: Tensor, labels: Tensor, rows: int, columns: int, generator: Generator) -> Tensor:
    """Put glyphs of the classes asked for side by side.

    Args:
        glyphs: (M, 1, SIZE, SIZE) uint8 from `letters.glyphs`, whose classes come in turn.
        labels: (N,) int64, the class of each poster.
    Returns:
        (N, 1, rows * SIZE, columns * SIZE) uint8.
    """
    count, classes = len(labels), len(CLASSES)
    turns = torch.randint(len(glyphs) // classes, (count, rows * columns), generator=generator)
    cells = glyphs[turns * classes + labels[:, None]]  # (N, rows * columns, 1, SIZE, SIZE)
    size = letters.SIZE
    return cells.view(count, rows, columns, size, size).permute(0, 1, 3, 2, 4).reshape(count, 1, rows * size, -1)


def cells(pictures: Tensor, side: int) -> Tensor:
    """The cells of posters (N, C, rows * side, columns * side), row by row: (N * rows * columns, C, side, side)."""
    parts = pictures.unfold(2, side, side).unfold(3, side, side)  # (N, C, rows, columns, side, side)
    return parts.permute(0, 2, 3, 1, 4, 5).flatten(0, 2)
