"""Tables of quantized models, and verdicts on Q-Drift, moment matching and the other corrections."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from itertools import chain

from . import quantization as q
from .formats import HEAVY, MILD, NumberFormat
from .metrics import Estimate
from .paired_sampler import NOISE, RUNS
from .quantization import QuantizedRow
from .subjects import SETTINGS, Setting
from .table import SPACES, Column, Part, mean, means, tabulate, tally, times
from .verdicts import QUESTION, verdict, votes

# Against the full-precision samples from the same noise.
NEAR = {"full_features": "FD features", "full_pixels": "FD pixels", "mse": "MSE"}
TITLES = {
    ("eps", "euler"): "eps model, Euler",
    ("eps", "dpmpp_2m"): "eps model, DPM-Solver++(2M)",
    ("flow", "euler"): "Flow model, Euler",
}
CORRECTIONS = (q.DRIFT, q.PAPER, q.GAIN, q.MOMENTS, q.BOTH, q.LAYERS, q.LAYERS_AND_MOMENTS, q.ADVISED)
RIVALLED = (q.ABLATED, q.TRANSFERRED, q.DAILY)
# Factors that the layer correction is to reach without a precision plan; on Q4_0 nothing is asked of features.
LIMITS = {"full_features": 0.8, "full_pixels": 0.5, "mse": 0.7}
DAILY_LIMITS = {"full_pixels": 0.75, "mse": 0.85}
HARM = 1.02  # at most, of what a calibration advises
Cells = Iterable[tuple[Setting, NumberFormat]]


class Quantized:
    """The stored results of both models: main rows and transfers."""

    def __init__(self, parts: dict[str, Part]) -> None:
        self.parts = {name: part for name, part in parts.items() if name.partition("-")[0] in q.PARTS and part.names}

    def main(self, setting: Setting) -> Part:
        return self.parts[f"quantized-{setting.kind}"]

    def settings(self) -> list[Setting]:
        return [s for kind in ("eps", "flow") for s in SETTINGS[kind] if f"quantized-{kind}" in self.parts]

    def changes(self, cells: Cells, method: str, base: str, measure: str) -> list[Estimate]:
        """Of the logarithm of the distance, where both rows are there."""
        pairs = [(self.main(s), [q.name(s, form, each) for each in (method, base)]) for s, form in cells]
        return [part.log_change(*names, measure) for part, names in pairs if all(name in part for name in names)]

    def grid(self, *forms: NumberFormat, settings: Sequence[Setting] | None = None) -> list:
        return [(setting, form) for setting in settings or self.settings() for form in forms]


def tables(found: Quantized) -> dict[str, str]:
    by_setting, by_kind = [], []
    for setting in found.settings():
        by_setting += [f"### {TITLES[setting.kind, setting.solver]}", _table(found.main(setting), setting)]
    for kind in SETTINGS:
        if part := found.parts.get(f"transfer-{kind}"):
            by_kind += [f"**{kind} model**", _transfer_table(part, kind)]
    errors = [(TITLES[s.kind, s.solver], partial(_error, found, s)) for s in found.settings()]
    forms = [form for form in (*HEAVY, *MILD) if all(_error(found, s, form) for s in found.settings())]
    return {
        "Quantized models, all comparisons": _all_comparisons(found),
        "Quantized models, layers and rivals": _grid(found, [*CORRECTIONS, *q.RIVALS], RIVALLED, q.PTQD),
        "Quantized models, targets": _targets(found),
        "Quantized models, advised": _advised(found),
        "Quantized models, ways to find layers": _grid(
            found, [q.LAYERS, *q.LAYER_VARIANTS], q.VARIED, [*q.LAYER_VARIANTS][-1]
        ),
        "Quantized models, errors": tabulate(forms if errors else [], ("format", lambda form: form.name), *errors),
        "Quantized models, by setting": "\n\n".join(by_setting),
        "Quantized models, transfers": "\n\n".join(by_kind),
    }


def _error(found: Quantized, setting: Setting, form: NumberFormat) -> str:
    part, row = found.main(setting), q.name(setting, form, q.PLAIN)
    return f"{mean(part, row, 'error')} %" if row in part else ""


def _table(part: Part, setting: Setting) -> str:
    def form_of(row: QuantizedRow) -> str:
        return "all but W8A8" if row.method == q.FULL and not row.form.exact else row.form.name

    rows = [row for row in q.rows(setting.kind) if row.setting == setting and row.name in part]
    return tabulate(rows, ("format", form_of), ("method", lambda row: row.method), *measured(part))


def _transfer_table(part: Part, kind: str) -> str:
    def used_at(row: QuantizedRow) -> str:
        setting = f"{row.setting.steps} steps, guidance {row.setting.cfg:g}, {row.setting.scheduler}"
        return setting if row.setting.classes == "all" else f"{setting}, last five classes"

    rows = [row for row in q.transfers(kind) if row.name in part]
    return tabulate(rows, ("used at", used_at), ("method", lambda row: row.method), *measured(part))


def measured(part: Part) -> list[Column]:
    """Distances to full precision, each with its change against plain quantization, and to real pictures."""

    def change(row: QuantizedRow, measure: str) -> str:
        plain = q.name(row.setting, row.form, q.PLAIN)
        return "" if row.method in (q.FULL, q.PLAIN) else times(part.log_change(row.name, plain, measure))

    columns = []
    for measure, label in NEAR.items():
        columns.append((f"{label} to full precision", lambda row, m=measure: mean(part, row.name, m)))
        columns.append(("change", partial(change, measure=measure)))
    for title, text in means(part, "accuracy", *SPACES, "spread"):
        title = f"{title} to real" if title in SPACES.values() else title
        columns.append((title, lambda row, text=text: text(row.name)))
    return columns


def _all_comparisons(found: Quantized) -> str:
    """How often each correction is better and worse than none, over models, samplers, real formats and measures."""
    cells = found.grid(*HEAVY, *MILD)
    words = {
        method: [value.word for measure in NEAR for value in found.changes(cells, method, q.PLAIN, measure)]
        for method in (*CORRECTIONS, *q.RIVALS)
    }
    columns = [(word, lambda method, word=word: str(words[method].count(word))) for word in QUESTION]
    rows = [method for method in words if words[method]]
    return tabulate(rows, ("correction", str), *columns, ("of", lambda method: str(len(words[method]))))


def _grid(found: Quantized, methods: Sequence[str], forms: Sequence[NumberFormat], needed: str) -> str:
    """Factors against no correction, in the order of NEAR; bold where better, italic where worse. Cells with a row of
    the method `needed`."""

    def cell(method: str, at: tuple[Setting, NumberFormat]) -> str:
        changes = [found.changes([at], method, q.PLAIN, measure) for measure in NEAR]
        return ", ".join(marked(change) for each in changes for change in each)

    cells = [at for at in found.grid(*forms) if cell(needed, at)]
    columns = [(f"{TITLES[s.kind, s.solver]}, {form.name}", partial(cell, at=(s, form))) for s, form in cells]
    return tabulate([m for m in methods if any(cell(m, at) for at in cells)], ("correction", str), *columns)


def marked(change: Estimate) -> str:
    mark = {"better": "**", "worse": "*"}.get(change.word, "")
    return f"{mark}{math.exp(change.mean):.2f}{mark}"


def _targets(found: Quantized) -> str:
    def factors(row: tuple[Setting, NumberFormat, str]) -> dict[str, float]:
        setting, form, method = row
        changes = {m: found.changes([(setting, form)], method, q.PLAIN, m) for m in NEAR}
        return {measure: math.exp(value.mean) for measure, values in changes.items() for value in values}

    def cell(row: tuple[Setting, NumberFormat, str], measure: str) -> str:
        factor, limit = factors(row)[measure], _limits(row[1]).get(measure)
        missed = limit is not None and factor > limit
        return f"{factor:.2f}" + (f" (misses by {100 * (factor / limit - 1):.0f} %)" if missed else "")

    rows = [(*at, m) for at in found.grid(*HEAVY, q.DAILY) for m in (q.LAYERS, q.LAYERS_AND_MOMENTS)]
    columns = [(label, partial(cell, measure=measure)) for measure, label in NEAR.items()]
    first = ("model", lambda row: TITLES[row[0].kind, row[0].solver]), ("format", lambda row: row[1].name)
    return tabulate([row for row in rows if factors(row)], *first, ("correction", lambda row: row[2]), *columns)


def _limits(form: NumberFormat) -> dict[str, float]:
    return DAILY_LIMITS if form is q.DAILY else LIMITS


def _advised(found: Quantized) -> str:
    """What the trial on held-out runs advised, seed by seed, and what that did."""

    def chosen(at: tuple[Setting, NumberFormat]) -> str:
        """By the row whose samples are the same. Left over are moment matching's: at half strength it has no row."""
        part = found.main(at[0])
        ours = part.values(q.name(*at, q.ADVISED), "mse")
        rows = [m for m in (q.PLAIN, q.DRIFT, q.LAYERS, q.LAYERS_AND_MOMENTS) if q.name(*at, m) in part]
        names = [
            next((m for m in rows if part.values(q.name(*at, m), "mse")[seed] == value), "moments")
            for seed, value in enumerate(ours)
        ]
        return ", ".join(f"{names.count(name)} {name}" for name in dict.fromkeys(sorted(names)))

    def cell(at: tuple[Setting, NumberFormat], measure: str) -> str:
        (change,) = found.changes([at], q.ADVISED, q.PLAIN, measure)
        factor = math.exp(change.mean)
        return marked(change) + (f" (above {HARM:g})" if factor > HARM else "")

    cells = [at for at in found.grid(*HEAVY, *MILD) if found.changes([at], q.ADVISED, q.PLAIN, "mse")]
    columns = [(label, partial(cell, measure=measure)) for measure, label in NEAR.items()]
    first = ("model", lambda at: TITLES[at[0].kind, at[0].solver]), ("format", lambda at: at[1].name)
    return tabulate(cells, *first, ("advised, of the seeds", chosen), *columns)


def findings(found: Quantized) -> Iterator[tuple[str, str, str]]:
    """A question, what is found, a verdict."""
    low_rank = HEAVY[1]
    simple = [form for form in HEAVY if form is not low_rank]
    heavy, mild, noise = found.grid(*HEAVY), found.grid(*MILD), found.grid(NOISE)
    ablated, one_run = found.grid(q.ABLATED), found.grid(q.TRANSFERRED)
    dpm = [cell for cell in heavy if cell[0].solver == "dpmpp_2m"]
    flow = [cell for cell in heavy if cell[0].kind == "flow"]
    w3a4 = q.ABLATED.name

    def against_plain(name: str, method: str) -> Iterator[tuple[str, Cells, str, str]]:
        for kind in ("eps", "flow"):
            cells = [cell for cell in found.grid(*simple) if cell[0].kind == kind]
            yield f"{name}, {kind}, simple rounding to W3A4 and W4A4", cells, method, q.PLAIN
        yield f"{name}, W3A4 with a low-rank branch", found.grid(low_rank), method, q.PLAIN

    rows = [
        *against_plain("Q-Drift", q.DRIFT),
        ("Q-Drift, mild formats", mild, q.DRIFT, q.PLAIN),
        ("Q-Drift, white noise, where the theory must win", noise, q.DRIFT, q.PLAIN),
        ("The same, rule `paper` on flow and DPM-Solver++(2M)", noise, q.PAPER, q.PLAIN),
        ("DPM-Solver++(2M): rule `paper` (Eq. 37) against `accumulated`", dpm, q.PAPER, q.DRIFT),
        ("Flow: rule `paper` (Eq. 27, scales the velocity) against `marginal`", flow, q.PAPER, q.DRIFT),
        (f"Q-Drift per channel against scalar, {w3a4}", ablated, q.DRIFT, q.SCALAR),
        (f"Q-Drift from {RUNS} runs against {q.MANY}, {w3a4}", ablated, q.DRIFT, q.MANY_DRIFT),
        (f"Bias correction, {w3a4}", ablated, q.BIAS, q.PLAIN),
        (f"Bias correction, stochastic, {w3a4}", ablated, q.STOCHASTIC, q.PLAIN),
        *against_plain("Gain inversion", q.GAIN),
        *against_plain("Moment matching", q.MOMENTS),
        ("Moment matching, mild formats", mild, q.MOMENTS, q.PLAIN),
        (f"Moment matching from {RUNS} runs against {q.MANY}, {w3a4}", ablated, q.MOMENTS, q.MANY_MOMENTS),
        (f"Moment matching from one run against {RUNS}, {q.TRANSFERRED.name}", one_run, q.ONE_MOMENTS, q.MOMENTS),
        ("Both against moment matching alone", heavy, q.BOTH, q.MOMENTS),
        *against_plain("Layer correction", q.LAYERS),
        ("Layer correction, mild formats", mild, q.LAYERS, q.PLAIN),
        ("Layer correction against moment matching", heavy, q.LAYERS, q.MOMENTS),
        ("Layers and moments against layers alone", heavy, q.LAYERS_AND_MOMENTS, q.LAYERS),
    ]
    for question, cells, method, base in rows:
        changes = {measure: found.changes(cells, method, base, measure) for measure in NEAR}
        if all(changes.values()):  # the short table lacks some
            yield finding(question, changes)
    yield from _transfers(found)


def finding(question: str, changes: dict[str, list[Estimate]]) -> tuple[str, str, str]:
    """changes: by measure of NEAR, of the logarithm of the distance."""
    texts = [f"{label} {_range(changes[m])} ({tally(changes[m])})" for m, label in NEAR.items()]
    return question, "; ".join(texts), verdict(votes(chain(*changes.values())), QUESTION)


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
    for question, (method, base) in TRANSFERS.items():
        texts, values = [], []
        for kind in ("eps", "flow"):
            part = found.parts.get(f"transfer-{kind}", ())
            rows = [row for row in q.transfers(kind) if row.method == method and row.name in part]
            for row in rows:
                changes = [part.log_change(row.name, q.name(row.setting, row.form, base), m) for m in NEAR]
                values += changes
                factors = ", ".join(f"{math.exp(value.mean):.2g} {value.word}" for value in changes)
                texts.append(f"{kind}, {row.setting.steps} steps, {row.setting.scheduler}: x {factors}")
        if values:
            question = f"Moment matching: {question} (features, pixels, MSE)"
            yield question, "; ".join(texts), verdict(votes(values), QUESTION)
