"""Tables of precision plans."""

from __future__ import annotations

from functools import partial

from . import precision as p
from .quantization import PLAIN, QuantizedRow, name
from .quantization_report import NEAR
from .subjects import SETTINGS
from .table import Part, tabulate, times

KINDS = ("flow", "eps")
PARTS = tuple(f"precision-{kind}" for kind in KINDS)


def tables(parts: dict[str, Part]) -> dict[str, str]:
    return {f"precision plan {kind}": _table(parts[f"precision-{kind}"], kind) for kind in KINDS}


def _table(part: Part, kind: str) -> str:
    """Against the quantized model without a plan, seed by seed; the share of the rounded multiply-adds made unrounded."""

    def change(pair: tuple[p.Method | p.Budgeted, QuantizedRow], measure: str) -> str:
        row = pair[1]
        plain = name(row.setting, row.form, PLAIN)
        return times(part.log_change(row.name, plain, measure))

    setting, found = SETTINGS[kind][0], []
    for form in p.FORMATS:
        found += [(method, QuantizedRow(setting, form, method.name, method.make)) for method in p.PLANS]
    return tabulate(
        [(method, row) for method, row in found if row.name in part],
        ("format", lambda pair: pair[1].form.name),
        ("steps with unrounded activations; correction", lambda pair: pair[0].name),
        ("multiply-adds unrounded", lambda pair: pair[0].spends(setting.steps)),
        *[(f"{label} to full precision", partial(change, measure=measure)) for measure, label in NEAR.items()],
    )
