"""The table and the contact sheet."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from pathlib import Path

from evidence import table
from PIL import Image, ImageDraw, ImageFont, ImageOps

from .measures import MEASURES
from .pictures import Album
from .values import Measurements

CELL, GAP, BAND, MOST_COLUMNS = 256, 6, 26, 8
PAPER, INK = (250, 249, 246), (28, 28, 30)


def text(
    values: Measurements, reference: str | None, baseline: str, about: Sequence[str], missing: Sequence[str]
) -> str:
    """Markdown. about: lines on how the pictures were made; missing: what could not be measured, and why."""
    names = list(values.found)
    columns = [measure for measure in MEASURES if any(measure in values.found[name] for name in names)]
    unit = "prompts, each the mean over its seeds" if values.prompts > 1 else "seeds"
    lines = [
        "# Paired pictures of one's own checkpoints",
        "",
        f"{values.prompts} prompts, {values.seeds} seeds, {datetime.date.today()}. ± is the standard error over {unit}"
        f"{'; of FID, over seeds' if 'fid' in columns else ''}.",
        *[f"- {line}" for line in about],
        *[f"- Not measured: {line}" for line in missing],
        "",
        table.markdown(
            ["variant", *(MEASURES[measure].title for measure in columns)],
            [[_title(name, reference, baseline), *(_mean(values, name, each) for each in columns)] for name in names],
        ),
        "",
        f"## Against {baseline}, pair by pair",
        "",
        "Difference, standard error and 95 % interval of Student's t; a difference whose interval holds 0 is none.",
        "",
    ]
    rows = [
        [name, MEASURES[each].title, table.difference(values.change(name, baseline, each)), values.word(name, baseline, each)]
        for name in names
        if name not in (reference, baseline)
        for each in columns
        if each in values.found[name] and each in values.found[baseline]
    ]  # fmt: skip
    lines.append(table.markdown(["variant", "measure", "difference", "is"], rows) if rows else "Nothing to compare.")
    if values.prompts * values.seeds < 20:
        lines += ["", f"{values.prompts * values.seeds} pairs are few: read a verdict as a hint."]
    return "\n".join(lines) + "\n"


def _title(name: str, reference: str | None, baseline: str) -> str:
    role = {reference: " (reference)", baseline: " (baseline)"}.get(name, "")
    return f"{name}{role}"


def _mean(values: Measurements, name: str, measure: str) -> str:
    return table.plus_minus(values.mean(name, measure)) if measure in values.found[name] else "-"


def sheet(album: Album, names: Sequence[str], path: Path) -> None:
    """One band a variant, one column a prompt and seed: the first ones, so that nothing is chosen."""
    pairs = [(i, seed) for i in range(len(album.prompts)) for seed in album.seeds][:MOST_COLUMNS]
    canvas = Image.new("RGB", (GAP + len(pairs) * (CELL + GAP), GAP + len(names) * (BAND + CELL + GAP)), PAPER)
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(16)
    for row, name in enumerate(names):
        top = GAP + row * (BAND + CELL + GAP)
        draw.text((GAP, top), name, INK, font)
        for column, (i, seed) in enumerate(pairs):
            with Image.open(album.paths(name, i, seed)[0]) as image:
                small = ImageOps.contain(image.convert("RGB"), (CELL, CELL), Image.Resampling.LANCZOS)
            canvas.paste(small, (GAP + column * (CELL + GAP), top + BAND))
    canvas.save(path)
