"""The picture model's world: small pictures of things on coloured grounds, 64x64, with prompts that say what they show.

Sources, fetched through npm at training time and never part of this repository:
* emoji-datasource-google: Noto Emoji, Apache License 2.0. emoji-datasource-twitter: Twemoji, CC-BY 4.0
  (Copyright Twitter, Inc and other contributors).
* emojilib: keywords, MIT.
"""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import tarfile
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from zlib import crc32

import numpy as np
import torch
from PIL import Image
from torch import Generator, Tensor
from torch.nn import functional as F

SIZE = 64
PACKAGES = ("emoji-datasource-google@16.0.0", "emoji-datasource-twitter@16.0.0", "emojilib@4.0.3")
SETS = ("google", "twitter")
CREDIT = (
    "Noto Emoji (Google, Apache License 2.0); Twemoji (Twitter, Inc and other contributors, CC-BY 4.0); emojilib (MIT)"
)
LEFT_OUT = {"Flags", "Component"}  # 270 flags would be a sixth of all pictures

# Name, and hue, saturation, value ranges of a ground.
GROUNDS = {
    "white": ((0.0, 1.0), (0.0, 0.04), (0.93, 1.0)),
    "black": ((0.0, 1.0), (0.0, 0.25), (0.0, 0.12)),
    "gray": ((0.0, 1.0), (0.0, 0.06), (0.4, 0.7)),
    "red": ((0.97, 1.02), (0.7, 1.0), (0.65, 0.95)),
    "orange": ((0.06, 0.1), (0.75, 1.0), (0.85, 1.0)),
    "yellow": ((0.14, 0.17), (0.5, 0.9), (0.9, 1.0)),
    "green": ((0.27, 0.4), (0.45, 0.9), (0.4, 0.85)),
    "cyan": ((0.47, 0.53), (0.4, 0.9), (0.75, 1.0)),
    "blue": ((0.57, 0.66), (0.55, 0.95), (0.5, 0.95)),
    "purple": ((0.73, 0.8), (0.4, 0.85), (0.45, 0.85)),
    "pink": ((0.88, 0.94), (0.25, 0.6), (0.9, 1.0)),
    "brown": ((0.05, 0.09), (0.5, 0.8), (0.3, 0.5)),
}


@dataclass(frozen=True)
class Things:
    """What there is to draw. Things are indexed the same in all fields.

    pictures: (sets, things, 4, SIZE, SIZE) uint8, RGBA with the colour multiplied by alpha.
    names, keywords, groups: of each thing.
    """

    pictures: Tensor
    names: tuple[tuple[str, ...], ...]
    keywords: tuple[tuple[str, ...], ...]
    groups: tuple[str, ...]


def fetch(folder: Path) -> None:
    """What is needed of the packages, unpacked. RuntimeError with npm's words where it fails."""
    for package in PACKAGES:
        name = package.rpartition("@")[0]
        if (folder / name).exists():
            continue
        draft = folder / f"{name}.draft"  # so that a stop leaves no half of a package behind
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
        done = subprocess.run(["npm", "pack", package, "--silent"], cwd=draft, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"npm could not fetch {package}: {done.stderr.strip()}")
        archive = draft / done.stdout.strip().splitlines()[-1]
        wanted = tuple(
            f"package/{part}" for part in ("dist", "LICENSE", "emoji.json", f"img/{name.rpartition('-')[2]}/64")
        )
        with tarfile.open(archive) as packed:
            packed.extractall(draft, [each for each in packed if each.name.startswith(wanted)], filter="data")
        archive.unlink()
        draft.rename(folder / name)


def load(folder: Path, groups: Collection[str] | None = None) -> Things:
    """All things that both sets draw, in the order of Unicode's list.

    Args:
        groups: of Unicode's, those to keep; None: all but LEFT_OUT.
    Raises:
        FileNotFoundError: before `fetch`. ValueError: there is no such group.
    """
    listed = json.loads((folder / "emoji-datasource-google" / "package" / "emoji.json").read_text())
    about = json.loads((folder / "emojilib" / "package" / "dist" / "emoji-en-US.json").read_text())
    known = {each["category"] for each in listed} - LEFT_OUT
    wanted = known if groups is None else set(groups)
    if wanted - known:
        raise ValueError(f"groups {sorted(wanted - known)} are none of {', '.join(sorted(known))}.")
    kept = [
        each
        for each in sorted(listed, key=lambda each: each["sort_order"])
        if each["category"] in wanted and all(each[f"has_img_{name}"] for name in SETS)
    ]
    pictures = torch.stack([torch.stack([_picture(folder, name, each["image"]) for each in kept]) for name in SETS])
    names = tuple(tuple(dict.fromkeys([_plain(each["name"]), *map(_plain, each["short_names"])])) for each in kept)
    keywords = tuple(_keywords(about, each["unified"]) for each in kept)
    return Things(pictures, names, keywords, tuple(each["category"] for each in kept))


def _plain(name: str) -> str:
    return name.lower().replace("_", " ").replace("-", " ").replace(":", " ")


def _keywords(about: dict[str, list[str]], unified: str) -> tuple[str, ...]:
    sign = "".join(chr(int(part, 16)) for part in unified.split("-"))
    found = about.get(sign) or about.get(sign.replace("\ufe0f", "")) or []
    return tuple(_plain(word) for word in found if any(letter.isalpha() for letter in word))


def _picture(folder: Path, name: str, file: str) -> Tensor:
    home = folder / f"emoji-datasource-{name}" / "package" / "img" / name / "64"
    picture = Image.open(home / file).convert("RGBA").resize((SIZE, SIZE), Image.Resampling.LANCZOS)
    values = np.asarray(picture).astype(np.float32)
    values[..., :3] *= values[..., 3:] / 255
    return torch.from_numpy(values.round().astype(np.uint8)).movedim(-1, 0)


def prompts(things: Things, chosen: Tensor, grounds: list[str], rng: np.random.Generator) -> list[str]:
    """A way to ask for each of the chosen things, on its ground half of the time."""
    made = []
    for thing, ground in zip(chosen.tolist(), grounds, strict=True):
        names, keywords = things.names[thing], things.keywords[thing]
        way = rng.random()
        if way < 0.65 or not keywords:
            text = names[int(rng.integers(len(names)))]
        elif way < 0.85:
            text = " ".join(rng.choice(keywords, size=min(len(keywords), int(rng.integers(1, 4))), replace=False))
        else:
            some = [word for word in names[0].split() if rng.random() < 0.6]
            text = " ".join([*some, str(rng.choice(keywords))])
        says_ground = rng.random() < 0.5 and not held_out(names[0], ground)
        made.append(f"{text} on {ground}" if says_ground else text)
    return made


def held_out(name: str, ground: str) -> bool:
    """Whether "name on ground" is kept out of the training prompts: one pair in forty."""
    return crc32(f"{name} on {ground}".encode()) % 40 == 0


def paint(things: Things, which: Tensor, chosen: Tensor, generator: Generator) -> tuple[Tensor, list[str]]:
    """Things on grounds: another scale, place, tilt and shade each time.

    Args:
        which, chosen: set and thing of each picture, (N,).
    Returns:
        Pictures (N, 3, SIZE, SIZE) in [-1, 1], and the names of their grounds.
    """
    count = len(chosen)
    cut = things.pictures[which, chosen].float() / 255

    def uniform(low: float, high: float) -> Tensor:
        return torch.rand(count, generator=generator) * (high - low) + low

    scale, tilt = uniform(0.68, 1.0), uniform(-0.12, 0.12)
    room = (1.0 - scale).clamp(min=0.04)
    x, y = uniform(-1, 1) * room * 0.8, uniform(-1, 1) * room * 0.8
    cos, sin = tilt.cos() / scale, tilt.sin() / scale
    turn = torch.stack(
        (torch.stack((cos, -sin, -x * cos + y * sin), 1), torch.stack((sin, cos, -x * sin - y * cos), 1)), 1
    )
    cut = F.grid_sample(cut, F.affine_grid(turn, list(cut.shape), align_corners=False), align_corners=False)
    colour, alpha = cut[:, :3], cut[:, 3:]
    colour = colour * uniform(0.9, 1.1).view(-1, 1, 1, 1)
    ground, names = _grounds(count, generator)
    return (colour + (1 - alpha) * ground).clamp(0, 1) * 2 - 1, names


def _grounds(count: int, generator: Generator) -> tuple[Tensor, list[str]]:
    """Two shades of one named colour, blended along a random direction. (N, 3, SIZE, SIZE) in [0, 1]."""
    names = list(GROUNDS)
    kinds = torch.randint(len(names), (count,), generator=generator)
    ranges = torch.tensor([GROUNDS[name] for name in names])[kinds]  # (N, 3, 2)
    ends = [
        ranges[..., 0] + torch.rand(count, 3, generator=generator) * (ranges[..., 1] - ranges[..., 0])
        for _ in range(2)
    ]
    near, far = (_rgb(end) for end in ends)
    angle = torch.rand(count, generator=generator) * 2 * math.pi
    line = torch.linspace(-1, 1, SIZE)
    slope = angle.cos().view(-1, 1, 1) * line.view(1, 1, -1) + angle.sin().view(-1, 1, 1) * line.view(1, -1, 1)
    share = (0.5 + 0.35 * slope)[:, None].clamp(0, 1)
    return near + share * (far - near), [names[kind] for kind in kinds.tolist()]


def _rgb(hsv: Tensor) -> Tensor:
    """(N, 3) in [0, 1], hue wraps, to (N, 3, 1, 1)."""
    hue, saturation, value = hsv.unbind(1)
    k = (torch.tensor([5.0, 3.0, 1.0]) + hue[:, None] * 6) % 6
    return (value[:, None] * (1 - saturation[:, None] * torch.minimum(k, 4 - k).clamp(0, 1)))[:, :, None, None]
