"""Every measure of every variant, with the pairs kept together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from evidence.metrics import Estimate, estimate, paired
from torch import Tensor

from . import measures
from .learned import ClipScore, Fid
from .measures import MEASURES
from .pictures import Album, read


@dataclass
class Measurements:
    """variant -> measure -> groups of values: one group for each prompt, of one value for each seed.

    FID belongs to a set of pictures: there a group is a seed, of one value for all its prompts.
    """

    prompts: int
    seeds: int
    found: dict[str, dict[str, list[list[float]]]] = field(default_factory=dict)

    def units(self, name: str, measure: str) -> list[float]:
        """What counts as independent: prompts, each the mean over its seeds; with one prompt alone its seeds."""
        groups = self.found[name][measure]
        return [sum(group) / len(group) for group in groups] if len(groups) > 1 else groups[0]

    def mean(self, name: str, measure: str) -> Estimate:
        return estimate(self.units(name, measure))

    def change(self, name: str, base: str, measure: str) -> Estimate:
        return paired(self.units(name, measure), self.units(base, measure))

    def word(self, name: str, base: str, measure: str) -> str:
        """better, worse, or higher and lower of what is neither good nor bad; or no difference."""
        better = MEASURES[measure].better
        change = self.change(name, base, measure)
        if change.word == "no difference":
            return change.word
        rises = change.mean > 0
        if better == 0:
            return "higher" if rises else "lower"
        return "better" if rises == (better > 0) else "worse"


def of(
    album: Album,
    names: Sequence[str],
    reference: str | None,
    clip: ClipScore | None = None,
    fid: Fid | None = None,
    real: Path | None = None,
) -> Measurements:
    """All that can be measured. real: a folder of pictures for FID, in place of the reference."""
    values = Measurements(len(album.prompts), len(album.seeds))
    for name in names:
        measured: dict[str, list[list[float]]] = {}
        for i, prompt in enumerate(album.prompts):
            rows = []
            for seed in album.seeds:
                pictures = album.pictures(name, i, seed)
                row = measures.of_one(pictures)
                if reference is not None and name != reference:
                    row |= measures.of_pair(pictures, album.pictures(reference, i, seed))
                if clip is not None:
                    row["clip"] = clip(pictures, prompt)
                rows.append(row)
            for measure in rows[0]:
                measured.setdefault(measure, []).append([row[measure] for row in rows])
        if fid is not None and (real is not None or name != (reference or name)):
            for seed in album.seeds:
                goal = _in_folder(real) if real else _of_seed(album, reference, seed)
                measured.setdefault("fid", []).append([fid(_of_seed(album, name, seed), goal)])
        values.found[name] = {measure: measured[measure] for measure in MEASURES if measure in measured}
    return values


def _of_seed(album: Album, name: str, seed: int) -> list[Tensor]:
    return [album.pictures(name, i, seed) for i in range(len(album.prompts))]


def _in_folder(folder: Path) -> list[Tensor]:
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() in (".png", ".jpg", ".jpeg", ".webp"))
    return [read(path)[None] for path in files]
