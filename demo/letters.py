"""The demo's picture world: one coloured letter on a coloured background, 64x64, drawn from a seed.

Glyph outlines come from freely licensed fonts published as Python packages (extras group `dev`); everything else is
arithmetic in torch. `glyphs` draws the masks once, `paint` gives each of them colours, shading and a background.
"""

from __future__ import annotations

import math
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Generator, Tensor

from gimbal_demo.conditioning import CLASSES

SIZE = 64

# (package, folder inside it, file names without extension)
FACES = (
    (
        "matplotlib",
        "mpl-data/fonts/ttf",
        "DejaVuSans-Bold DejaVuSans DejaVuSansMono-Bold DejaVuSerif-Bold DejaVuSerif",
    ),
    ("matplotlib", "mpl-data/fonts/ttf", "DejaVuSans-BoldOblique DejaVuSerif-BoldItalic STIXGeneralBol"),
    ("font_roboto", "files", "Roboto-Black Roboto-Bold Roboto-Medium Roboto-BoldItalic"),
    ("font_fredoka_one", "files", "FredokaOne-Regular"),
    ("font_source_sans_pro", "files", "SourceSansPro-Black SourceSansPro-Bold SourceSansPro-BoldIt"),
    ("font_source_serif_pro", "files", "SourceSerifPro-Black SourceSerifPro-Bold SourceSerifPro-Semibold"),
    ("font_amatic_sc", "files", "AmaticSC-Bold"),
    ("font_caladea", "files", "Caladea-Bold Caladea-BoldItalic"),
    ("font_hanken_grotesk", "files", "HankenGrotesk-Bold HankenGrotesk-BoldItalic"),
    ("font_manrope", "files", "Manrope-ExtraBold Manrope-Bold"),
)


@lru_cache
def face_paths() -> tuple[Path, ...]:
    """The font files, in a fixed order. Raises FileNotFoundError naming what is missing."""
    paths = []
    for package, folder, names in FACES:
        spec = find_spec(package)
        if spec is None or not spec.submodule_search_locations:
            raise FileNotFoundError(f"letters: font package {package!r} is missing; install the extras group 'dev'")
        base = Path(spec.submodule_search_locations[0]) / folder
        for name in names.split():
            found = [base / f"{name}{suffix}" for suffix in (".ttf", ".otf") if (base / f"{name}{suffix}").exists()]
            if not found:
                raise FileNotFoundError(f"letters: {base / name} (.ttf or .otf) is missing; reinstall {package!r}")
            paths.append(found[0])
    return tuple(paths)


@lru_cache(maxsize=512)
def _font(path: Path, pixels: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(str(path), pixels)


def _glyph(letter: str, rng: np.random.Generator) -> np.ndarray:
    """One letter's coverage mask (SIZE, SIZE) uint8: random face, height, tilt and place."""
    scale, side = 2, 2 * SIZE
    path = face_paths()[int(rng.integers(len(face_paths())))]
    font = _font(path, 100)
    left, top, right, bottom = font.getbbox(letter, anchor="ls")
    # Faces differ in how much of their em a capital fills: ask for a cap height, not for a point size.
    height = int(rng.integers(34, 49)) * scale
    fitted = min(height / (bottom - top), 52 * scale / (right - left))
    font = _font(path, int(100 * fitted))
    mask = Image.new("L", (side, side), 0)
    centre = [side / 2 + scale * float(rng.uniform(-5, 5)) for _ in range(2)]
    left, top, right, bottom = font.getbbox(letter, anchor="ls")
    origin = (centre[0] - (left + right) / 2, centre[1] - (top + bottom) / 2)
    ImageDraw.Draw(mask).text(origin, letter, font=font, fill=255, anchor="ls")
    mask = mask.rotate(float(rng.normal(0, 5)), resample=Image.Resampling.BILINEAR)
    return np.asarray(mask.resize((SIZE, SIZE), Image.Resampling.BOX))


def glyphs(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """`count` masks and their classes, classes in turn.

    Returns:
        masks (count, 1, SIZE, SIZE) uint8, labels (count,) int64.
    """
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % len(CLASSES)
    masks = np.stack([_glyph(CLASSES[label], rng) for label in labels])
    return torch.from_numpy(masks)[:, None], torch.from_numpy(labels)


def _rgb(hue: Tensor, saturation: Tensor, value: Tensor) -> Tensor:
    """HSV in [0, 1] (hue wraps), each (N,), to RGB (N, 3, 1, 1) in [0, 1]."""
    k = (torch.tensor([5.0, 3.0, 1.0]) + hue[:, None] * 6) % 6
    rgb = value[:, None] * (1 - saturation[:, None] * torch.minimum(k, 4 - k).clamp(0, 1))
    return rgb[:, :, None, None]


def _backgrounds(near: Tensor, far: Tensor, height: int, width: int, generator: Generator) -> Tensor:
    """Blend two colours (N, 3, 1, 1) by a random field: slope, disc, stripes or soft blots. (N, 3, height, width)."""
    count = len(near)
    y = torch.linspace(-1, 1, height)[:, None].expand(height, width)
    x = torch.linspace(-1, 1, width)[None].expand(height, width)
    u = torch.rand(count, 8, 1, 1, generator=generator)
    angle = 2 * math.pi * u[:, 0]
    along = torch.cos(angle) * x + torch.sin(angle) * y
    slope = along * 0.5 + 0.5
    disc = torch.hypot(x - (u[:, 1] - 0.5), y - (u[:, 2] - 0.5)) / 1.4
    stripes = 0.5 + 0.5 * torch.tanh(2 * torch.sin(along * (5 + 5 * u[:, 3]) + 2 * math.pi * u[:, 4]))
    blots = torch.zeros(count, height, width)
    for i in range(4):
        place = torch.rand(count, 3, 1, 1, generator=generator)
        distance = torch.hypot(x - 2 * place[:, 0] + 1, y - 2 * place[:, 1] + 1)
        blots = blots + (-1.0) ** i * torch.exp(-((distance / (0.4 + 0.4 * place[:, 2])) ** 2))
    blots = 0.5 + 0.5 * blots
    kind = torch.randint(4, (count, 1, 1), generator=generator)
    field = torch.stack([slope, disc, stripes, blots]).clamp(0, 1).gather(0, kind.expand(1, count, height, width))[0]
    return torch.lerp(near, far, field[:, None])


def paint(masks: Tensor, generator: Generator) -> Tensor:
    """Colour the masks.

    Args:
        masks: (N, 1, H, W) uint8, from `glyphs` or put together of several.
    Returns:
        Pictures (N, 3, H, W) float32 in [-1, 1].
    """
    count, _, height, width = masks.shape
    mask = masks.float() / 255
    u = torch.rand(12, count, generator=generator)
    dark_letter = u[0] < 0.5
    hue = u[1]
    # A light letter on a dark ground or the reverse: the hues differ too, but legibility rests on the value.
    light, dark = 0.82 + 0.18 * u[2], 0.18 + 0.27 * u[3]
    ground_value = torch.where(dark_letter, light, dark)
    letter_value = torch.where(dark_letter, dark, light)
    near = _rgb(hue, 0.35 + 0.5 * u[4], ground_value)
    far = _rgb(hue + 0.25 * (u[5] - 0.5), 0.35 + 0.5 * u[6], (ground_value + 0.3 * (u[7] - 0.5)).clamp(0.1, 1))
    letter_hue = hue + 0.5 + 0.4 * (u[8] - 0.5)
    top = _rgb(letter_hue, 0.25 + 0.65 * u[9], letter_value)
    bottom = _rgb(letter_hue + 0.15 * (u[10] - 0.5), 0.25 + 0.65 * u[11], letter_value)
    letter = torch.lerp(top, bottom, torch.linspace(0, 1, height)[:, None].expand(height, width))
    picture = torch.lerp(_backgrounds(near, far, height, width, generator), letter, mask)
    return picture * 2 - 1


def pictures(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """`count` finished pictures (N, 3, SIZE, SIZE) in [-1, 1] and their classes (N,), all from one seed."""
    masks, labels = glyphs(count, seed)
    return paint(masks, torch.Generator().manual_seed(seed)), labels
