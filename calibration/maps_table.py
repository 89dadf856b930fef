"""Moment matching's maps as lines of text."""

from __future__ import annotations

from .state_map import StateMap


def maps_table(maps: StateMap) -> list[str]:
    columns = ("sigma", 9), ("scale", 9), ("min", 9), ("max", 9), ("|shift|", 9), ("max", 9)
    lines = ["step" + "".join(f" {name:>{width}}" for name, width in columns)]
    rows = zip(maps.sigma, maps.scale, maps.shift.abs(), strict=True)
    for i, (sigma, scale, shift) in enumerate(rows):
        values = (sigma, scale.mean(), scale.min(), scale.max(), shift.mean(), shift.max())
        lines.append(f"{i + 1:4d}" + "".join(f" {float(value):9.4g}" for value in values))
    return lines
