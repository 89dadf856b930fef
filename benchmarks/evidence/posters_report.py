"""Tables of larger canvases and of the spread of maps, and verdicts on corrections there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial

from . import posters as p
from . import quantization as q
from .quantization import QuantizedRow
from .quantization_report import NEAR, finding, measured
from .subjects import Setting
from .table import Part, number, plus_minus, tabulate, times

Draw = tuple[Part, Setting, int]  # a part's setting and the runs of a calibration


def tables(parts: Mapping[str, Part]) -> dict[str, str]:
    part = parts[p.KIND]
    latent, method = ("latent", lambda row: row.setting.size), ("method", lambda row: row.method)
    form = ("format", lambda row: "" if row.method == q.FULL else row.form.name)
    main = [
        QuantizedRow(p.SETTINGS[canvas], form, method, q.METHODS[method]) for canvas, form, method in p.main_rows()
    ]
    transfers = [row for row in p.rows(p.KIND) if row.method in map(p.of_size, p.SETTINGS) and row.name in part]
    columns = []
    for measure, label in NEAR.items():
        columns.append((f"{label}, to none", partial(_against, part, q.PLAIN, measure)))
        columns.append(("to own", partial(_against, part, q.MOMENTS, measure)))
    columns.append(("MSE kept, %", partial(_kept, part)))
    return {
        "Larger canvases": tabulate([row for row in main if row.name in part], latent, form, method, *measured(part)),
        "Larger canvases, transfers": tabulate(transfers, latent, ("maps", method[1]), *columns),
        "Spread of maps": _spread(parts),
    }


def has_largest(part: Part) -> bool:
    """The short table has no row of the largest canvas."""
    return q.name(p.SETTINGS[p.LARGE], p.FORM, q.PLAIN) in part


def findings(part: Part) -> Iterator[tuple[str, str, str]]:
    for canvas in (p.SMALL, p.LARGE):
        setting = p.SETTINGS[canvas]
        for method in (q.DRIFT, q.MOMENTS, q.BANDS, q.LAYERS, q.LAYERS_AND_MOMENTS):
            forms = [form for form in p.FORMATS if q.name(setting, form, method) in part]
            pairs = [[q.name(setting, form, each) for each in (method, q.PLAIN)] for form in forms]
            if forms:
                changes = {m: [part.log_change(*pair, m) for pair in pairs] for m in NEAR}
                names = ", ".join(form.name for form in forms)
                yield finding(f"Latents of {setting.size}, {method}: {names}", changes)


def _against(part: Part, base: str, measure: str, row: QuantizedRow) -> str:
    return times(part.log_change(row.name, q.name(row.setting, row.form, base), measure))


def _kept(part: Part, row: QuantizedRow) -> str:
    own, plain = (part.mean(q.name(row.setting, row.form, each), "mse").mean for each in (q.MOMENTS, q.PLAIN))
    return number(100 * (plain - part.mean(row.name, "mse").mean) / (plain - own))


def _spread(parts: Mapping[str, Part]) -> str:
    draws = [
        (parts[n], s, runs) for n, settings in p.SPREAD_SETTINGS.items() for s in settings for runs in p.SPREAD_RUNS
    ]

    def pooled(measure: str, draw: Draw) -> str:
        part, setting, runs = draw
        return plus_minus(part.root_mean(p.spread_name(setting, runs), measure))

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
        [draw for draw in draws if p.spread_name(*draw[1:]) in draw[0]],
        ("latent", lambda draw: draw[1].size),
        ("runs", lambda draw: str(draw[2])),
        *columns,
        ("MSE", lambda draw: times(draw[0].log_change(*pair(draw), "mse"))),
        ("from, to", extent),
    )
