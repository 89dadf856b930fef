"""QSilk's section of the report."""

from __future__ import annotations

from collections.abc import Iterator

from . import qsilk, reference
from .metrics import Estimate
from .samg_report import SPACES
from .table import Part, brief, difference, markdown, plus_minus, tally

SAFE = ("micrograin hard", "micrograin smooth", "AQClip gentle")
SOLVERS = {"euler": "Euler"}
NEAR_IDENTITY = 45.0  # dB on real latents; the earlier study's safe forms had 49 and more


def section(part: Part, real: Part, images: list[str]) -> Iterator[str]:
    yield "## QSilk at every step"
    yield (
        "Each method limits the guided prediction at every step, as its node does; AQClip with a fresh running average for each run. "
        f"Tiles of {qsilk.TILE} every {qsilk.STRIDE} positions, the proportion to this latent of 16 x 16 that 32 and 16 have to one of 64 x 64; "
        "*one tile* is the node's 32 and 16 as they are, here a single tile. *gentle* and *strong* are the node's corridors; *paper* and *tanh* (alpha = 2) are the "
        "paper's formulas as printed, here as negative controls. Confidence is the gradient's. Distances are to real pictures; changes are against *plain*, paired by seed: "
        "mean ± standard error, 95 % t interval, a word. The share in tails is that of latent values beyond 4 standard deviations of the real ones' channel."
    )
    for guidance, steps, solver in qsilk.SETTINGS:
        yield f"### Guidance {guidance:g}, {steps} {SOLVERS.get(solver, solver)} steps"
        yield setting(part, guidance, steps, solver)
    yield "### Is it more than less contrast?"
    yield (
        f"At {qsilk.SHEET_STEPS} steps each method is compared with the curve of plain guidance (scales {', '.join(f'{scale:g}' for scale in qsilk.CURVE)}) where that has the same "
        "contrast (std / real), seed by seed: whoever only wants calmer pictures can lower the guidance instead. *not comparable*: out of the curve's range, with the number of seeds within it."
    )
    yield equal_contrast(part)
    yield "### What it looks like"
    yield "No picture is chosen: the first ten samples of seed 0, one of each class."
    yield from (f"![Contact sheet]({image})" for image in images)
    yield "### Once on real latents, where a stabilizer should do nothing"
    yield (
        "Latents of held-out real pictures, each limited once. PSNR is that of the decoded pictures against the same pictures without the limit; "
        "*change* is the mean squared change over the latents' variance. The first row is also the floor of every distance on this page: as many real pictures as a run has samples."
    )
    yield real_table(real)


def rows_of(part: Part, guidance: float, steps: int, solver: str) -> dict[str, str]:
    """Method -> row."""
    named = {method: qsilk.name(method, guidance, steps, solver) for method in qsilk.methods()}
    return {method: row for method, row in named.items() if row in part}


def setting(part: Part, guidance: float, steps: int, solver: str) -> str:
    found = rows_of(part, guidance, steps, solver)
    base = found[qsilk.PLAIN]
    rows = []
    for method, row in found.items():
        cells = [method]
        for measure in SPACES:
            cells.append(plus_minus(part.mean(row, measure)))
            if method == qsilk.PLAIN:
                cells.append("")
            else:
                change = part.change(row, base, measure)
                cells.append(f"{difference(change)} **{change.word}**")
        cells += [
            plus_minus(part.mean(row, measure), percent=True).removesuffix(" %")
            for measure in ("accuracy", "saturation", "tail")
        ]
        cells += [plus_minus(part.mean(row, measure)) for measure in ("kurtosis", "spread")]
        rows.append(cells)
    header = ["method", "FD features", "change", "FD pixels", "change"]
    header += ["accuracy, %", "pixels out of range, %", "in tails, %", "kurtosis", "std / real"]
    return markdown(header, rows)


def equal_contrast(part: Part) -> str:
    rows = []
    for guidance, steps, solver in qsilk.SETTINGS:
        on_curve = (steps, solver) == (qsilk.SHEET_STEPS, "euler")
        found = rows_of(part, guidance, steps, solver) if on_curve else {}
        for method, row in found.items():
            if method != qsilk.PLAIN:
                cells = [_worded(against_plain(part, row, measure), part.seeds) for measure in SPACES]
                cells.append(_worded(against_plain(part, row, "saturation"), part.seeds, percent=True))
                margin = against_plain(part, row, "margin")
                cells.append(difference(margin) if margin.n == part.seeds else "-")
                rows.append([f"{guidance:g}", method, *cells])
    header = ["guidance", "method", *SPACES.values(), "pixels out of range, %", "margin (more is better)"]
    return markdown(header, rows)


def against_plain(part: Part, row: str, measure: str) -> Estimate:
    curve = [qsilk.name(qsilk.PLAIN, guidance, qsilk.SHEET_STEPS, "euler") for guidance in qsilk.CURVE]
    return part.against_curve(row, curve, "spread", measure, log=measure in SPACES)


def _worded(value: Estimate, seeds: int, percent: bool = False) -> str:
    if value.n < seeds:
        return f"not comparable ({value.n} of {seeds})"
    return f"{difference(value, percent)} **{value.word}**"


def real_table(real: Part) -> str:
    rows = []
    for row in real.names:
        first = row == reference.UNTOUCHED
        cells = [
            row,
            *(["", ""] if first else [f"{real.mean(row, 'psnr').mean:.1f}", f"{real.mean(row, 'change').mean:.4f}"]),
        ]
        for measure in SPACES:
            cells.append(plus_minus(real.mean(row, measure)))
        cells += [
            plus_minus(real.mean(row, measure), percent=True).removesuffix(" %")
            for measure in ("accuracy", "saturation", "tail")
        ]
        cells += [plus_minus(real.mean(row, measure)) for measure in ("kurtosis", "spread")]
        rows.append(cells)
    header = ["method", "PSNR, dB", "change", *SPACES.values(), "accuracy, %", "pixels out of range, %"]
    return markdown([*header, "in tails, %", "kurtosis", "std / real"], rows)


def changes(part: Part, methods: tuple[str, ...], measure: str, strong: bool) -> list[Estimate]:
    """Against plain, in the settings of guidance 6 and more, or in those below."""
    found = []
    for guidance, steps, solver in qsilk.SETTINGS:
        rows = rows_of(part, guidance, steps, solver)
        if (guidance >= 6) == strong:
            found += [part.change(rows[m], rows[qsilk.PLAIN], measure) for m in methods if m in rows]
    return found


def findings(part: Part, real: Part) -> Iterator[tuple[str, str, str]]:
    for method in SAFE:
        found = [changes(part, (method,), measure, True) for measure in SPACES]
        words = [value.word for values in found for value in values]
        yield (
            f"{method}: a small gain at guidance 6 and more",
            "; ".join(
                f"{label}: {tally(values)}, {_shares(part, method, key)}"
                for (key, label), values in zip(SPACES.items(), found, strict=True)
            ),
            "reproduced" if set(words) == {"better"} else "refuted" if "better" not in words else "in part",
        )
        low = [changes(part, (method,), measure, False)[0] for measure in SPACES]
        psnr = real.mean(method, "psnr").mean
        kept = psnr > NEAR_IDENTITY and all(value.word != "worse" for value in low)
        yield (
            f"{method}: leaves clean latents and normal guidance alone",
            f"{psnr:.1f} dB on real latents; at guidance 3 "
            + "; ".join(f"{label} {brief(v)}" for label, v in zip(SPACES.values(), low, strict=True)),
            "reproduced" if kept else "refuted",
        )
    strong = [changes(part, ("AQClip strong",), measure, True) for measure in SPACES]
    low = [changes(part, ("AQClip strong",), measure, False)[0] for measure in SPACES]
    words = [value.word for values in strong for value in values]
    yield (
        "AQClip strong: a larger gain at guidance 6 and more, at a cost at guidance 3",
        "; ".join(
            f"{label}: {tally(values)}, {_shares(part, 'AQClip strong', key)}"
            for (key, label), values in zip(SPACES.items(), strong, strict=True)
        )
        + "; at guidance 3 "
        + "; ".join(f"{label} {brief(v)}" for label, v in zip(SPACES.values(), low, strict=True)),
        "reproduced"
        if set(words) == {"better"} and "worse" in {v.word for v in low}
        else "in part"
        if "better" in words
        else "refuted",
    )
    for method in ("micrograin tanh", "AQClip paper"):
        high = [changes(part, (method,), measure, True) for measure in SPACES]
        low = [changes(part, (method,), measure, False)[0] for measure in SPACES]
        psnr = real.mean(method, "psnr").mean
        broken = psnr < 25 and all(value.word == "worse" for value in low)
        yield (
            f"{method}: damages pictures at normal guidance",
            f"{psnr:.1f} dB on real latents; at guidance 3 "
            + "; ".join(f"{label} {brief(v)}" for label, v in zip(SPACES.values(), low, strict=True))
            + "; at 6 and more "
            + "; ".join(f"{label}: {tally(values)}" for label, values in zip(SPACES.values(), high, strict=True)),
            "reproduced" if broken else "refuted",
        )
    yield _against_less_guidance(part)
    yield from _new(part)


def _against_less_guidance(part: Part) -> tuple[str, str, str]:
    """The best of the limits at guidance 6 against plain guidance 3, in the same number of steps."""
    steps = qsilk.SHEET_STEPS
    at_six = rows_of(part, 6.0, steps, "euler")
    limited = {method: row for method, row in at_six.items() if method != qsilk.PLAIN}
    plain = rows_of(part, 3.0, steps, "euler")[qsilk.PLAIN]
    shown, beaten = [], []
    for measure, label in SPACES.items():
        method, row = min(limited.items(), key=lambda item: part.mean(item[1], measure).mean)
        change = part.change(row, plain, measure)
        shown.append(
            f"{label}: best is {method}, {plus_minus(part.mean(row, measure))} against {plus_minus(part.mean(plain, measure))}"
        )
        beaten.append(change.word == "worse")
    return (
        "No limit at guidance 6 comes near plain guidance 3",
        "; ".join(shown),
        "reproduced" if all(beaten) else "refuted" if not any(beaten) else "in part",
    )


def _new(part: Part) -> Iterator[tuple[str, str, str]]:
    """What the earlier study did not measure."""
    for method in (*SAFE, "AQClip strong"):
        found = {}
        for measure, label in SPACES.items():
            rows = [rows_of(part, g, s, v).get(method) for g, s, v in qsilk.SETTINGS if _on_curve(g, s, v)]
            values = [against_plain(part, row, measure) for row in rows if row]
            found[label] = [value for value in values if value.n == part.seeds]
        words = [value.word for values in found.values() for value in values]
        yield (
            f"Not measured earlier: {method} at guidance 6 and more against plain guidance lowered to the same contrast",
            "; ".join(f"{label}: {tally(values)}" for label, values in found.items()),
            words[0] if len(set(words)) == 1 else "mixed" if {"better", "worse"} <= set(words) else _leaning(words),
        )
    rows = rows_of(part, 3.0, qsilk.SHEET_STEPS, "euler")
    shown = {
        method: part.mean(rows[method], "spread")
        for method in (qsilk.PLAIN, "AQClip gentle", "AQClip gentle, no average")
    }
    yield (
        "Not measured earlier: what AQClip's running average does to contrast",
        "std / real at guidance 3: " + "; ".join(f"{method} {plus_minus(value)}" for method, value in shown.items()),
        "new",
    )


def _on_curve(guidance: float, steps: int, solver: str) -> bool:
    return guidance >= 6 and (steps, solver) == (qsilk.SHEET_STEPS, "euler")


def _leaning(words: list[str]) -> str:
    decided = [word for word in words if word != "no difference"]
    return f"{decided[0]} in part" if decided else "no difference"


def _shares(part: Part, method: str, measure: str) -> str:
    """Range of the relative changes at guidance 6 and more."""
    shares = []
    for guidance, steps, solver in qsilk.SETTINGS:
        rows = rows_of(part, guidance, steps, solver)
        if guidance >= 6 and method in rows:
            before = part.mean(rows[qsilk.PLAIN], measure).mean
            shares.append(100 * part.change(rows[method], rows[qsilk.PLAIN], measure).mean / before)
    return f"{min(shares):+.0f} to {max(shares):+.0f} %"
