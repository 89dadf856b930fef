"""Tables of quantized models, and verdicts on Q-Drift, moment matching and the other corrections."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from itertools import chain

from . import quantization as q
from .formats import HEAVY, MILD, Format
from .metrics import Estimate
from .quantization import Cell, Setting
from .table import SPACES, Column, Part, mean, means, tabulate, tally, times
from .verdicts import QUESTION, verdict, votes

# Against the full-precision samples from the same noise.
NEAR = {"full_features": "FD features", "full_pixels": "FD pixels", "mse": "MSE"}
TITLES = {
    ("eps", "euler"): "eps model, Euler",
    ("eps", "dpmpp_2m"): "eps model, DPM-Solver++(2M)",
    ("flow", "euler"): "Flow model, Euler",
}
Cells = Iterable[tuple[Setting, Format]]


class Quantized:
    """The stored results of both models: main rows and transfers."""

    def __init__(self, parts: dict[str, Part]) -> None:
        self.parts = {name: part for name, part in parts.items() if name.partition("-")[0] in q.PARTS and part.names}

    def main(self, setting: Setting) -> Part:
        return self.parts[f"quantized-{setting.kind}"]

    def settings(self) -> list[Setting]:
        return [s for kind in ("eps", "flow") for s in q.SETTINGS[kind] if f"quantized-{kind}" in self.parts]

    def changes(self, cells: Cells, method: str, base: str, measure: str) -> list[Estimate]:
        """Of the logarithm of the distance, where both rows are there."""
        pairs = [(self.main(s), [q.name(s, form, each) for each in (method, base)]) for s, form in cells]
        return [part.log_change(*names, measure) for part, names in pairs if all(name in part for name in names)]

    def grid(self, forms: Sequence[Format], settings: Sequence[Setting] | None = None) -> list[tuple[Setting, Format]]:
        return [(setting, form) for setting in settings or self.settings() for form in forms]


def tables(found: Quantized) -> dict[str, str]:
    by_setting, by_kind = [], []
    for setting in found.settings():
        by_setting += [f"### {TITLES[setting.kind, setting.solver]}", _table(found.main(setting), setting)]
    for kind in q.SETTINGS:
        if part := found.parts.get(f"transfer-{kind}"):
            by_kind += [f"**{kind} model**", _transfer_table(part, kind)]
    errors = [(TITLES[s.kind, s.solver], partial(_error, found, s)) for s in found.settings()]
    forms = [form for form in (*HEAVY, *MILD) if all(_error(found, s, form) for s in found.settings())]
    return {
        "Quantized models, all comparisons": _overall(found),
        "Quantized models, errors": tabulate(forms if errors else [], ("format", lambda form: form.name), *errors),
        "Quantized models, by setting": "\n\n".join(by_setting),
        "Quantized models, transfers": "\n\n".join(by_kind),
    }


def _error(found: Quantized, setting: Setting, form: Format) -> str:
    part, row = found.main(setting), q.name(setting, form, q.PLAIN)
    return f"{mean(part, row, 'error')} %" if row in part else ""


def _table(part: Part, setting: Setting) -> str:
    def form_of(cell: Cell) -> str:
        return "all but W8A8" if cell.method == q.FULL and not cell.form.exact else cell.form.name

    rows = [cell for cell in q.cells(setting.kind) if cell.setting == setting and cell.name in part]
    return tabulate(rows, ("format", form_of), ("method", lambda cell: cell.method), *measured(part))


def _transfer_table(part: Part, kind: str) -> str:
    def used_at(cell: Cell) -> str:
        there = f"{cell.setting.steps} steps, guidance {cell.setting.cfg:g}, {cell.setting.scheduler}"
        return there if cell.setting.classes == "all" else f"{there}, last five classes"

    rows = [cell for cell in q.transfers(kind) if cell.name in part]
    return tabulate(rows, ("used at", used_at), ("method", lambda cell: cell.method), *measured(part))


def measured(part: Part) -> list[Column]:
    """Columns of rows that are cells: distances to full precision, each with its change against plain quantization."""

    def change(cell: Cell, measure: str) -> str:
        plain = q.name(cell.setting, cell.form, q.PLAIN)
        return "" if cell.method in (q.FULL, q.PLAIN) else times(part.log_change(cell.name, plain, measure))

    columns = []
    for measure, label in NEAR.items():
        columns.append((f"{label} to full precision", lambda cell, m=measure: mean(part, cell.name, m)))
        columns.append(("change", partial(change, measure=measure)))
    real = means(part, "accuracy", *SPACES, "spread")
    titled = [(f"{title} to real" if title in SPACES.values() else title, text) for title, text in real]
    return columns + [(title, lambda cell, text=text: text(cell.name)) for title, text in titled]


def _overall(found: Quantized) -> str:
    """How often each correction is better and worse than none, over models, samplers, real formats and measures."""
    cells = found.grid((*HEAVY, *MILD))
    words = {
        method: [value.word for measure in NEAR for value in found.changes(cells, method, q.PLAIN, measure)]
        for method in (q.DRIFT, q.PAPER, q.GAIN, q.MOMENTS, q.BOTH)
    }
    columns = [(word, lambda method, word=word: str(words[method].count(word))) for word in QUESTION]
    rows = [method for method in words if words[method]]
    return tabulate(rows, ("correction", str), *columns, ("of", lambda method: str(len(words[method]))))


def findings(found: Quantized) -> Iterator[tuple[str, str, str]]:
    """A question, what is found, a verdict."""
    everywhere, heavy, mild = found.settings(), found.grid(HEAVY), found.grid(MILD)
    ablated, one_run, noise = (found.grid([form]) for form in (q.ABLATED, q.TRANSFERRED, q.NOISE))
    low = found.grid([HEAVY[1]])
    plain = [cell for cell in heavy if cell not in low]
    dpm, flow = [s for s in everywhere if s.solver == "dpmpp_2m"], [s for s in everywhere if s.kind == "flow"]
    kinds = {kind: [cell for cell in plain if cell[0].kind == kind] for kind in ("eps", "flow")}
    simple, branch, w3a4 = "simple rounding to W3A4 and W4A4", "W3A4 with a low-rank branch", q.ABLATED.name

    def against_plain(name: str, method: str) -> Iterator[tuple[str, Cells, str, str]]:
        for kind, cells in kinds.items():
            yield f"{name}, {kind}, {simple}", cells, method, q.PLAIN
        yield f"{name}, {branch}", low, method, q.PLAIN

    rows = [
        *against_plain("Q-Drift", q.DRIFT),
        ("Q-Drift, mild formats", mild, q.DRIFT, q.PLAIN),
        ("Q-Drift, white noise, where the theory must win", noise, q.DRIFT, q.PLAIN),
        ("The same, rule `paper` on flow and DPM-Solver++(2M)", noise, q.PAPER, q.PLAIN),
        ("DPM-Solver++(2M): rule `paper` (Eq. 37) against `accumulated`", found.grid(HEAVY, dpm), q.PAPER, q.DRIFT),
        ("Flow: rule `paper` (Eq. 27, scales the velocity) against `marginal`", found.grid(HEAVY, flow), q.PAPER, q.DRIFT),
        (f"Q-Drift per channel against scalar, {w3a4}", ablated, q.DRIFT, q.SCALAR),
        (f"Q-Drift from {q.RUNS} runs against {q.MANY}, {w3a4}", ablated, q.DRIFT, q.MANY_DRIFT),
        (f"Bias correction, {w3a4}", ablated, q.BIAS, q.PLAIN),
        (f"Bias correction, stochastic, {w3a4}", ablated, q.STOCHASTIC, q.PLAIN),
        *against_plain("Gain inversion", q.GAIN),
        *against_plain("Moment matching", q.MOMENTS),
        ("Moment matching, mild formats", mild, q.MOMENTS, q.PLAIN),
        (f"Moment matching from {q.RUNS} runs against {q.MANY}, {w3a4}", ablated, q.MOMENTS, q.MANY_MOMENTS),
        (f"Moment matching from one run against {q.RUNS}, {q.TRANSFERRED.name}", one_run, q.ONE_MOMENTS, q.MOMENTS),
        ("Both against moment matching alone", heavy, q.BOTH, q.MOMENTS),
    ]  # fmt: skip
    for what, cells, method, base in rows:
        changes = {measure: found.changes(cells, method, base, measure) for measure in NEAR}
        if all(changes.values()):  # the short table lacks some
            yield finding(what, changes)
    yield from _transfers(found)


def finding(what: str, changes: dict[str, list[Estimate]]) -> tuple[str, str, str]:
    """changes: by measure of NEAR, of the logarithm of the distance."""
    texts = [f"{label} {_range(changes[m])} ({tally(changes[m])})" for m, label in NEAR.items()]
    return what, "; ".join(texts), verdict(votes(chain(*changes.values())), QUESTION)


def _range(changes: list[Estimate]) -> str:
    low, high = (f"{math.exp(end(value.mean for value in changes)):.2g}" for end in (min, max))
    return f"x {low}" if low == high else f"x {low} to {high}"


TRANSFERS = {
    "maps on another schedule, shared out": (q.SHARED, q.PLAIN),
    f"maps on another schedule, shared out, against {q.INTERPOLATED}": (q.SHARED, q.INTERPOLATED),
    "maps of guidance 3 at 5": (q.SAME, q.PLAIN),
    q.OTHER_CLASSES: (q.OTHER_CLASSES, q.PLAIN),
}


def _transfers(found: Quantized) -> Iterator[tuple[str, str, str]]:
    for what, (method, against) in TRANSFERS.items():
        texts, values = [], []
        for kind in ("eps", "flow"):
            part = found.parts.get(f"transfer-{kind}", ())
            for cell in q.transfers(kind):
                base = q.name(cell.setting, cell.form, against)
                if cell.method != method or cell.name not in part or base not in part:
                    continue
                changes = [part.log_change(cell.name, base, measure) for measure in NEAR]
                values += changes
                shown = ", ".join(f"{math.exp(value.mean):.2g} {value.word}" for value in changes)
                texts.append(f"{kind}, {cell.setting.steps} steps, {cell.setting.scheduler}: x {shown}")
        if values:
            what = f"Moment matching: {what} (features, pixels, MSE)"
            yield what, "; ".join(texts), verdict(votes(values), QUESTION)
