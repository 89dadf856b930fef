"""The report's section on larger canvases, from stored results."""

from __future__ import annotations

from collections.abc import Iterator

from . import bands
from . import posters as p
from . import quantization as q
from .quantization_report import NEAR, finding, times
from .table import Part, markdown, plus_minus

SHEET = "posters.png"


def section(part: Part, image: str) -> Iterator[str]:
    if not part.names:
        return
    about = part.stored[0]["about"]
    yield "## Larger canvases"
    yield (
        f"The poster model: the flow model's network and weights, trained on to posters of 2 x 2, 2 x 4, 4 x 2 and 4 x 4 letters in one picture's colours, latents of up to 64 x 64 (those of a picture of 512 x 512 in "
        f"Stable Diffusion). {about['samples']} posters for each seed and row, {part.seeds} seeds, Euler, {p.HOME.steps} steps, guidance {p.HOME.cfg:g}, *simple*; calibrations of {q.RUNS} runs. Accuracy and Frechet distances are of the "
        f"posters' cells, each as large as the small model's pictures; distances as above, to the full-precision posters of the same noise. *Bands*: moment matching with a gain for each of {bands.COUNT} rings of spatial frequency, not in the pack."
    )
    if q.name(p.SETTINGS[p.LARGE], p.SPREAD, q.PLAIN) in part:
        yield (
            "The largest canvas has fewer rows to save time: decided before any of its corrected rows was seen, after two "
            "seeds of the smaller one's."
        )
        yield f"![Contact sheet]({image})"
    rows = [
        _row(part, p.SETTINGS[canvas], form, method)
        for canvas, form, method in p.rows()
        if q.name(p.SETTINGS[canvas], form, method) in part
    ]
    yield markdown(["latent", "format", "method", *_header()], rows)
    yield from _elsewhere(part)
    yield from _draws(part)


def findings(part: Part) -> Iterator[tuple[str, str, str]]:
    if not part.names:
        return
    for canvas in (p.SMALL, p.LARGE):
        setting = p.SETTINGS[canvas]
        for method in (q.DRIFT, q.MOMENTS, q.BANDS):
            pairs = [(q.name(setting, f, method), q.name(setting, f, q.PLAIN)) for f in p.FORMATS[canvas]]
            pairs = [pair for pair in pairs if all(name in part for name in pair)]
            if pairs:
                changes = {m: [part.log_change(*pair, m) for pair in pairs] for m in NEAR}
                yield finding(f"Latents of {setting.size}, {method}", changes)


def _elsewhere(part: Part) -> Iterator[str]:
    rows = []
    for canvas, others in p.OTHER_SIZES.items():
        methods = (q.PLAIN, q.MOMENTS, *map(p.of_size, others))
        if all(q.name(p.SETTINGS[canvas], p.SPREAD, method) in part for method in methods):
            rows += [_row(part, p.SETTINGS[canvas], p.SPREAD, method) for method in methods]
    if rows:
        yield "### Maps of one size at another"
        yield markdown(["latent", "format", "maps", *_header()], rows)


def _draws(part: Part) -> Iterator[str]:
    rows = []
    for setting in (p.HOME, p.SETTINGS[p.SMALL], p.SETTINGS[p.LARGE]):
        for runs in (*p.FEW, q.RUNS):
            name = p.spread_name(setting, runs)
            if name in part:
                shown = [setting.size, str(runs)]
                for of in ("scale", "shift"):
                    shown += [plus_minus(part.mean(name, f"{of}_{what}")) for what in ("size", "apart")]
                method = p.few(runs) if runs in p.FEW else q.MOMENTS
                row, base = (q.name(setting, p.SPREAD, each) for each in (method, q.PLAIN))
                known = row in part and base in part
                shown.append(times(part.log_change(row, base, "mse")) if known else "")
                shown.append(_range(part, row, base) if known else "")
                rows.append(shown)
    if rows:
        yield "### How far maps spread over draws"
        yield (
            f"{p.SPREAD.name}. Two calibrations of as many runs, of other noise and classes, are compared. *Agree*: root mean square over steps and channels of what both maps have in common, of the scale's logarithm and of the shift; "
            "*spread*: one draw's root mean square deviation. Where the spread is as large as what they agree on, a calibration is half chance. The last columns: the latent's mean squared error against full precision, maps to no maps, over "
            f"the seeds, each with its own draw: mean and word, then the least and the most. {p.HOME.size} is the small flow model."
        )
        header = ["latent", "runs", "scale: agree", "spread", "shift: agree", "spread", "MSE", "from, to"]
        yield markdown(header, rows)


def _range(part: Part, row: str, base: str) -> str:
    factors = [a / b for a, b in zip(part.values(row, "mse"), part.values(base, "mse"), strict=True)]
    return f"{min(factors):.2f} to {max(factors):.2f}"


def _header() -> list[str]:
    pairs = [text for label in NEAR.values() for text in (label, "change")]
    return [*pairs, "accuracy, %"]


def _row(part: Part, setting: q.Setting, form: q.Format, method: str) -> list[str]:
    row, base = q.name(setting, form, method), q.name(setting, form, q.PLAIN)
    shown = [setting.size, "" if method == q.FULL else form.name, method]
    for measure in NEAR:
        known = method != q.FULL
        shown.append(plus_minus(part.mean(row, measure)) if known else "")
        shown.append(times(part.log_change(row, base, measure)) if known and row != base else "")
    return [*shown, plus_minus(part.mean(row, "accuracy"), percent=True).removesuffix(" %")]
