"""Tables of larger canvases and of the spread of maps, and verdicts on corrections there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial

from . import posters as p
from . import quantization as q
from . import spread
from .quantization import Cell, Setting
from .quantization_report import NEAR, finding, measured
from .table import Part, number, plus_minus, tabulate, times

Draw = tuple[Part, Setting, int]  # a part's setting and the runs of a calibration


def tables(parts: Mapping[str, Part]) -> dict[str, str]:
    part = parts[p.KIND]
    latent, method = ("latent", lambda cell: cell.setting.size), ("method", lambda cell: cell.method)
    form = ("format", lambda cell: "" if cell.method == q.FULL else cell.form.name)
    main = [Cell(p.SETTINGS[canvas], form, method, q.METHODS[method]) for canvas, form, method in p.rows()]
    moved = [cell for cell in p.cells(p.KIND) if cell.method in map(p.of_size, p.SETTINGS)]
    moved = [cell for cell in moved if all(name in part for name in (cell.name, _other(cell, q.PLAIN), _own(cell)))]
    columns = []
    for measure, label in NEAR.items():
        columns.append((f"{label}, to none", partial(_against, part, q.PLAIN, measure)))
        columns.append(("to own", partial(_against, part, q.MOMENTS, measure)))
    return {
        "Larger canvases": tabulate(
            [cell for cell in main if cell.name in part], latent, form, method, *measured(part)
        ),
        "Larger canvases, transfers": tabulate(
            moved, latent, ("maps", method[1]), *columns, ("MSE kept, %", partial(_kept, part))
        ),
        "Spread of maps": _spread(parts),
    }


def has_largest(part: Part) -> bool:
    """The short table has no row of the largest canvas."""
    return q.name(p.SETTINGS[p.LARGE], p.FORM, q.PLAIN) in part


def findings(part: Part) -> Iterator[tuple[str, str, str]]:
    for canvas in (p.SMALL, p.LARGE):
        setting = p.SETTINGS[canvas]
        for method in (q.DRIFT, q.MOMENTS, q.BANDS):
            pairs = {f.name: (q.name(setting, f, method), q.name(setting, f, q.PLAIN)) for f in p.FORMATS}
            pairs = {form: pair for form, pair in pairs.items() if all(name in part for name in pair)}
            if pairs:
                changes = {m: [part.log_change(*pair, m) for pair in pairs.values()] for m in NEAR}
                yield finding(f"Latents of {setting.size}, {method}: {', '.join(pairs)}", changes)


def _other(cell: Cell, method: str) -> str:
    return q.name(cell.setting, cell.form, method)


def _own(cell: Cell) -> str:
    return _other(cell, q.MOMENTS)


def _against(part: Part, base: str, measure: str, cell: Cell) -> str:
    return times(part.log_change(cell.name, _other(cell, base), measure))


def _kept(part: Part, cell: Cell) -> str:
    row, own, plain = (part.mean(name, "mse").mean for name in (cell.name, _own(cell), _other(cell, q.PLAIN)))
    return number(100 * (plain - row) / (plain - own))


def _spread(parts: Mapping[str, Part]) -> str:
    draws = [(parts[n], s, runs) for n, settings in spread.SETTINGS.items() for s in settings for runs in spread.RUNS]

    def pooled(measure: str, draw: Draw) -> str:
        part, setting, runs = draw
        return plus_minus(part.root_mean(spread.name(setting, runs), measure))

    def pair(draw: Draw) -> list[str]:
        method = q.ONE_MOMENTS if draw[2] == 1 else q.MOMENTS
        return [q.name(draw[1], p.FORM, each) for each in (method, q.PLAIN)]

    def extent(draw: Draw) -> str:
        values = (draw[0].values(row, "mse") for row in pair(draw))
        factors = [ours / plain for ours, plain in zip(*values, strict=True)]
        return f"{min(factors):.2f} to {max(factors):.2f}"

    columns = [
        (f"{what}: common" if of == "common" else of, partial(pooled, f"{what}_{of}"))
        for what in ("scale", "shift")
        for of in ("common", "own")
    ]
    return tabulate(
        [draw for draw in draws if spread.name(*draw[1:]) in draw[0]],
        ("latent", lambda draw: draw[1].size),
        ("runs", lambda draw: str(draw[2])),
        *columns,
        ("MSE", lambda draw: times(draw[0].log_change(*pair(draw), "mse"))),
        ("from, to", extent),
    )
