"""The report's section on larger canvases and on the spread of maps, from stored results."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from . import bands, spread
from . import posters as p
from . import quantization as q
from .quantization_report import NEAR, finding, header, measured, times
from .table import Part, markdown, number, plus_minus

SHEET = "posters.png"


def section(parts: Mapping[str, Part], image: str) -> Iterator[str]:
    part = parts[p.KIND]
    if not part.names:
        return
    about = part.stored[0]["about"]
    counts = ", ".join(
        f"{about['samples'] * canvas[0] * canvas[1] // p.SIDE**2} at {setting.size}"
        for canvas, setting in p.SETTINGS.items()
        if _known(part, canvas, q.PLAIN)
    )
    yield "## Larger canvases"
    yield (
        f"The poster model: the flow model's network and weights, trained on to posters of 2 x 2, 2 x 4, 4 x 2 and 4 x 4 letters in one picture's colours, latents of up to 64 x 64 (those of a picture of 512 x 512 in "
        f"Stable Diffusion). {about['samples']} posters for each seed and row, the classes in turn, {part.seeds} seeds, Euler, {p.HOME.steps} steps, guidance {p.HOME.cfg:g}, *simple*; calibrations of {q.RUNS} runs. Accuracy and Frechet distances are of the "
        f"posters' cells ({counts}), each as large as the small model's pictures: **compare no distance across sizes**. Distances as above, to the full-precision posters of the same noise."
    )
    if any(_known(part, canvas, q.BANDS) for canvas in p.SETTINGS):
        yield f"*Bands*: moment matching with a gain for each of {bands.COUNT} rings of spatial frequency, not in the pack."
    if has_largest(part):
        yield (
            "No row is left out. Decided on after a look at a first run of 8 posters, which lacked two classes and, at 64 x 64, W3A4 and Q-Drift on Q4_0: ten posters, those rows, and the distances to real pictures. "
            f"*{q.BANDS}* has one format at 64 x 64 to save time."
        )
        yield f"![Contact sheet]({image})"
    rows = [
        _row(part, p.SETTINGS[canvas], form, method)
        for canvas, form, method in p.rows()
        if q.name(p.SETTINGS[canvas], form, method) in part
    ]
    yield markdown(["latent", "format", "method", *header()], rows)
    yield from _elsewhere(part)
    yield from _draws(parts)


def has_largest(part: Part) -> bool:
    """The short table has no row of the largest canvas."""
    return _known(part, p.LARGE, q.PLAIN)


def findings(part: Part) -> Iterator[tuple[str, str, str]]:
    for canvas in (p.SMALL, p.LARGE):
        setting = p.SETTINGS[canvas]
        for method in (q.DRIFT, q.MOMENTS, q.BANDS):
            pairs = {f.name: (q.name(setting, f, method), q.name(setting, f, q.PLAIN)) for f in p.FORMATS}
            pairs = {form: pair for form, pair in pairs.items() if all(name in part for name in pair)}
            if pairs:
                changes = {m: [part.log_change(*pair, m) for pair in pairs.values()] for m in NEAR}
                yield finding(f"Latents of {setting.size}, {method}: {', '.join(pairs)}", changes)


def _known(part: Part, canvas: tuple[int, int], method: str) -> bool:
    return q.name(p.SETTINGS[canvas], p.FORM, method) in part


def _elsewhere(part: Part) -> Iterator[str]:
    rows = []
    for canvas, others in p.OTHER_SIZES.items():
        setting = p.SETTINGS[canvas]
        own, plain = (q.name(setting, p.FORM, method) for method in (q.MOMENTS, q.PLAIN))
        for method in map(p.of_size, others):
            row = q.name(setting, p.FORM, method)
            if all(name in part for name in (row, own, plain)):
                shown = [setting.size, method]
                for measure in NEAR:
                    shown += [times(part.log_change(row, base, measure)) for base in (plain, own)]
                rows.append([*shown, _kept(part, row, own, plain)])
    if rows:
        yield "### Maps of one size at another"
        yield f"{p.FORM.name}. Against no maps, and against maps found at the size itself. Kept: of what those take off the latent's mean squared error."
        pairs = [text for label in NEAR.values() for text in (f"{label}, to none", "to own")]
        yield markdown(["latent", "maps", *pairs, "MSE kept, %"], rows)


def _kept(part: Part, row: str, own: str, plain: str) -> str:
    mean = {name: part.mean(name, "mse").mean for name in (row, own, plain)}
    return number(100 * (mean[plain] - mean[row]) / (mean[plain] - mean[own]))


def _draws(parts: Mapping[str, Part]) -> Iterator[str]:
    rows = []
    for name, settings in spread.SETTINGS.items():
        part = parts[name]
        for setting in settings:
            for runs in spread.RUNS:
                stored = spread.name(setting, runs)
                if stored in part:
                    shown = [setting.size, str(runs)]
                    for what in ("scale", "shift"):
                        shown += [plus_minus(part.root_mean(stored, f"{what}_{of}")) for of in ("common", "own")]
                    row, base = (q.name(setting, p.FORM, each) for each in (_method(runs), q.PLAIN))
                    rows.append([*shown, times(part.log_change(row, base, "mse")), _range(part, row, base)])
    if rows:
        yield "### How far maps spread over draws"
        yield (
            f"{p.FORM.name}. Two calibrations of as many runs, of other noise and classes, are compared. *Common*: root mean square over steps and channels of what both maps say, of the scale's logarithm and of the shift; "
            "*own*: what one draw adds to it. Both pooled over the seeds, errors by jackknife. The last columns: the latent's mean squared error against full precision, maps to no maps, over "
            f"the seeds, each with its own draw: mean and word, then the least and the most. {p.HOME.size} is the small flow model."
        )
        columns = ["latent", "runs", "scale: common", "own", "shift: common", "own", "MSE", "from, to"]
        yield markdown(columns, rows)


def _method(runs: int) -> str:
    return q.ONE_MOMENTS if runs == 1 else q.MOMENTS


def _range(part: Part, row: str, base: str) -> str:
    factors = [a / b for a, b in zip(part.values(row, "mse"), part.values(base, "mse"), strict=True)]
    return f"{min(factors):.2f} to {max(factors):.2f}"


def _row(part: Part, setting: q.Setting, form: q.Format, method: str) -> list[str]:
    row, base = q.name(setting, form, method), q.name(setting, form, q.PLAIN)
    return [setting.size, "" if method == q.FULL else form.name, method, *measured(part, row, base)]
