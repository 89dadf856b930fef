"""The report's sections on quantized models: Q-Drift, moment matching and the other corrections."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence

from . import quantization as q
from .formats import HEAVY, MILD, Format
from .metrics import Estimate
from .quantization import Setting
from .table import Part, markdown, plus_minus, tally

# Against the full-precision samples from the same noise.
NEAR = {"full_features": "FD features", "full_pixels": "FD pixels", "mse": "MSE"}
TITLES = {
    ("eps", "euler"): "eps model, Euler",
    ("eps", "dpmpp_2m"): "eps model, DPM-Solver++(2M)",
    ("flow", "euler"): "Flow model, Euler",
}
IMAGES = ("quantized_corrections.png", *(f"quantized_{kind}.png" for kind in q.SETTINGS))  # the plot, the sheets
RARE = 0.1  # a smaller share of words among many comparisons is what chance gives
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
        found = []
        for setting, form in cells:
            names = [q.name(setting, form, each) for each in (method, base)]
            part = self.main(setting)
            if all(name in part for name in names):
                found.append(part.log_change(*names, measure))
        return found

    def grid(self, forms: Sequence[Format], settings: Sequence[Setting] | None = None) -> list[tuple[Setting, Format]]:
        return [(setting, form) for setting in settings or self.settings() for form in forms]


def in_short(found: Quantized, more: Iterable[tuple[str, str, str]] = ()) -> Iterator[str]:
    if not found.parts:
        return
    yield (
        "Quantized models. *x*: times the distance, or the mean squared error of the latent, of what it is compared with, over the models, samplers and formats named; less is better. All against full precision's samples of the "
        "same noise. In brackets, how many of these comparisons are which."
    )
    yield markdown(["question", "here", "verdict"], [[a, b, f"**{c}**"] for a, b, c in [*findings(found), *more]])


def section(found: Quantized, images: Sequence[str]) -> Iterator[str]:
    if not found.parts:
        return
    yield "## Quantized models, plain and corrected"
    main = found.main(found.settings()[0])
    about = main.stored[0]["about"]
    yield (
        f"{about['samples']} samples for each seed and row, {main.seeds} seeds, 20 steps, guidance 3. Two models of one size: the flow model, on ComfyUI's *simple* schedule, and "
        "the demo's eps model, on *karras*, which was taught by the flow model and so is nearly the same function in the other parameterisation. Formats are simulated as the node *Simulate Quantization* does at its defaults: weights (W) and activations (A) of the blocks' linear layers rounded to so many bits, "
        "in groups of 64 weights and by token, with a low-rank branch where it says *rank*; *GGUF Q4_0* rounds the same layers' weights in blocks of 32, *fp8* casts all weights. "
        "W8A8 ran in float32, and is compared with full precision in float32; everything else has bfloat16 products."
    )
    if not any(found.changes(found.grid([q.NOISE]), q.DRIFT, q.PLAIN, measure) for measure in NEAR):
        yield "This is the short table: of what is explained here it has the main rows only, the rest is with `--full`."
    yield "\n".join(
        [
            "- **quantized**: nothing is corrected. Every word below is against this row, paired by seed: the factor between the two (geometric mean over seeds), its 95 % t interval, a word.",
            "- **drift**: Q-Drift (arXiv 2603.18095) per channel, rule `auto`: the paper's Eq. 22 for Euler on eps, *marginal* for the flow model, *accumulated* for DPM-Solver++(2M). **rule paper**: as printed, which scales the "
            "velocity on flow (Eq. 27) and sums squared weights step by step for a multistep solver (Eq. 37). **scalar**: one gain for all channels.",
            "- **moments**: moment matching, ours: after each step the state gets full precision's mean and deviation per channel. **both**: moment matching found and used with Q-Drift on.",
            "- **gain inversion**: ours: the output's regression on full precision's, turned round. **bias correction**: D2-DPM's conditional mean of the error taken off, *stochastic* with noise of the error's variance.",
            f"- Calibration: {q.RUNS} runs (one picture each) of other noise than any sample here, another draw for each seed, so that the spread over draws is in the errors; K = {q.MANY}: so many runs.",
            f"- **white noise**: the control. Full precision with independent noise of variance {q.NOISE_VARIANCE:g} on each output, the case that Q-Drift is derived for; the variance is given, not calibrated.",
        ]
    )
    yield (
        "**The paper's claims**, on large models, in FID against real pictures, quantized to corrected: W3A4 SDXL 31.73 to 30.43 (full precision 17.20), PixArt-Sigma 48.85 to 44.26, Sana 17.32 to 16.52; "
        "milder formats mixed; five calibration runs nearly as good as all (30.65 to 31.06); bias correction 75.1. "
        "Here distances are to the *full-precision samples of the same noise*, first of all: a distance to real pictures rewards whatever happens to change contrast the right way. "
        f"As so few samples say little of many components, they are those of the first {q.COMPONENTS} principal components of either space."
    )
    yield _overall(found)
    yield (
        "No row is left out. Decided on after a look: to save time, how few samples and components (a dozen rows of one seed of the flow model, with more samples, thrown away); that changes are told as factors (its first two "
        "seeds); two seeds more than the five planned (all rows of five). "
        "With so few samples a row without a word may still have an effect; its interval says how large."
    )
    yield from _errors(found)
    yield f"![What each correction does to the distance from full precision]({images[0]})"
    yield from (f"![Contact sheet]({image})" for image in images[1:])
    for setting in found.settings():
        yield f"### {TITLES[setting.kind, setting.solver]}"
        yield table(found, setting)
    transfers = [name for name in found.parts if name.startswith("transfer")]
    if transfers:
        yield "### Moment matching's maps elsewhere than where they were found"
        home = q.SETTINGS["flow"][0]
        yield (
            f"{q.TRANSFERRED.name}, Euler, {found.parts[transfers[0]].seeds} seeds. *Own maps* are found where they are used. The others are found at {home.steps} steps, guidance {home.cfg:g} and the usual schedule. *Shared out*: the pack's rule, each "
            "calibrated step's map by the share of it that a step covers. *Interpolated*: the map of the calibrated step that ends at the same noise level, in log sigma between. "
            "*Maps of other classes*: found on the first five classes alone, used on the last five."
        )
        for name in transfers:
            yield f"**{name.partition('-')[2]} model**"
            yield transfer_table(found.parts[name], name.partition("-")[2])


def _overall(found: Quantized) -> str:
    shown = []
    for method in (q.DRIFT, q.PAPER, q.GAIN, q.MOMENTS, q.BOTH):
        cells = found.grid((*HEAVY, *MILD))
        changes = [value for measure in NEAR for value in found.changes(cells, method, q.PLAIN, measure)]
        if changes:
            shown.append(f"*{method}*: {tally(changes)} of {len(changes)}")
    return (
        "**Found here**, against the uncorrected quantized model, over models, samplers, formats and the three measures of distance to full precision (real quantization only, without the white noise): "
        f"{'; '.join(shown)}."
    )


def _errors(found: Quantized) -> Iterator[str]:
    """How far the formats are from full precision at all, in the unit of the pack's own report."""
    rows = []
    for form in (*HEAVY, *MILD):
        names = [(found.main(setting), q.name(setting, form, q.PLAIN)) for setting in found.settings()]
        if all(name in part for part, name in names):
            rows.append([form.name, *[plus_minus(part.mean(name, "error"), percent=True) for part, name in names]])
    yield (
        "How far the uncorrected models are from full precision, as *Q-Drift Report* says it of one's own: the error of the guided output at full precision's states, in percent of the signal (root mean squares, all noise levels and channels together)."
    )
    yield markdown(["format", *[TITLES[setting.kind, setting.solver] for setting in found.settings()]], rows)


def table(found: Quantized, setting: Setting) -> str:
    part = found.main(setting)
    rows = []
    for form in (*HEAVY, *MILD, q.NOISE):
        for method in (q.FULL, *q.methods(setting, form)):
            row = q.name(setting, form, method)
            if row in part and (method != q.FULL or form is HEAVY[0] or form.exact):
                shown = ["all but W8A8" if form is HEAVY[0] else form.name, method] if method == q.FULL else None
                rows.append([*(shown or [form.name, method]), *measured(part, row, q.name(setting, form, q.PLAIN))])
    return markdown(["format", "method", *header()], rows)


def transfer_table(part: Part, kind: str) -> str:
    rows = []
    for cell in q.transfers(kind):
        if cell.name in part:
            setting = cell.setting
            there = f"{setting.steps} steps, guidance {setting.cfg:g}, {setting.scheduler}"
            there += "" if setting.classes == "all" else ", last five classes"
            base = q.name(setting, cell.form, q.PLAIN)
            rows.append([there, cell.method, *measured(part, cell.name, base)])
    return markdown(["used at", "method", *header()], rows)


def times(change: Estimate) -> str:
    """A change of the logarithm as a factor, its interval and a word."""
    mean, low, high = (
        math.exp(value) for value in (change.mean, change.mean - change.half, change.mean + change.half)
    )
    return f"x {mean:.3g} [{low:.3g}, {high:.3g}] **{change.word}**"


def header() -> list[str]:
    """Of what `measured` gives."""
    pairs = [text for label in NEAR.values() for text in (f"{label} to full precision", "change")]
    return [*pairs, "accuracy, %", "FD features to real", "FD pixels to real", "std / real"]


def measured(part: Part, row: str, base: str) -> list[str]:
    cells = []
    for measure in NEAR:
        if measure not in part.stored[0]["runs"][row]:
            cells += ["", ""]
            continue
        cells.append(plus_minus(part.mean(row, measure)))
        cells.append("" if row == base else times(part.log_change(row, base, measure)))
    cells.append(plus_minus(part.mean(row, "accuracy"), percent=True).removesuffix(" %"))
    return cells + [plus_minus(part.mean(row, measure)) for measure in ("fd_features", "fd_pixels", "spread")]


def findings(found: Quantized) -> Iterator[tuple[str, str, str]]:
    """A question, what is found, a verdict by fixed rules."""
    everywhere, heavy, mild = found.settings(), found.grid(HEAVY), found.grid(MILD)
    ablated, one_run, noise = (found.grid([form]) for form in (q.ABLATED, q.TRANSFERRED, q.NOISE))
    low = found.grid([HEAVY[1]])
    plain = [cell for cell in heavy if cell not in low]
    dpm = found.grid(HEAVY, [setting for setting in everywhere if setting.solver == "dpmpp_2m"])
    flow = found.grid(HEAVY, [setting for setting in everywhere if setting.kind == "flow"])
    kinds = {kind: [cell for cell in plain if cell[0].kind == kind] for kind in ("eps", "flow")}
    simple, branch = "simple rounding to W3A4 and W4A4", "W3A4 with a low-rank branch"
    rows = [
        *[(f"Q-Drift, {kind}, {simple}", cells, q.DRIFT, q.PLAIN) for kind, cells in kinds.items()],
        (f"Q-Drift, {branch}", low, q.DRIFT, q.PLAIN),
        ("Q-Drift, mild formats", mild, q.DRIFT, q.PLAIN),
        ("Q-Drift, white noise, where the theory must win", noise, q.DRIFT, q.PLAIN),
        ("The same, rule `paper` on flow and DPM-Solver++(2M)", noise, q.PAPER, q.PLAIN),
        ("DPM-Solver++(2M): rule `paper` (Eq. 37) against `accumulated`", dpm, q.PAPER, q.DRIFT),
        ("Flow: rule `paper` (Eq. 27, scales the velocity) against `marginal`", flow, q.PAPER, q.DRIFT),
        (f"Q-Drift per channel against scalar, {q.ABLATED.name}", ablated, q.DRIFT, q.SCALAR),
        (f"Q-Drift from {q.RUNS} runs against {q.MANY}, {q.ABLATED.name}", ablated, q.DRIFT, q.MANY_DRIFT),
        (f"Bias correction, {q.ABLATED.name}", ablated, q.BIAS, q.PLAIN),
        (f"Bias correction, stochastic, {q.ABLATED.name}", ablated, q.STOCHASTIC, q.PLAIN),
        *[(f"Gain inversion, {kind}, {simple}", cells, q.GAIN, q.PLAIN) for kind, cells in kinds.items()],
        (f"Gain inversion, {branch}", low, q.GAIN, q.PLAIN),
        *[(f"Moment matching, {kind}, {simple}", cells, q.MOMENTS, q.PLAIN) for kind, cells in kinds.items()],
        (f"Moment matching, {branch}", low, q.MOMENTS, q.PLAIN),
        ("Moment matching, mild formats", mild, q.MOMENTS, q.PLAIN),
        (f"Moment matching from {q.RUNS} runs against {q.MANY}, {q.ABLATED.name}", ablated, q.MOMENTS, q.MANY_MOMENTS),
        (f"Moment matching from one run against {q.RUNS}, {q.TRANSFERRED.name}", one_run, q.ONE_MOMENTS, q.MOMENTS),
        ("Both against moment matching alone", heavy, q.BOTH, q.MOMENTS),
    ]
    for what, cells, method, base in rows:
        changes = {measure: found.changes(cells, method, base, measure) for measure in NEAR}
        if all(changes.values()):  # the short table lacks some
            yield finding(what, changes)
    yield from _transfers(found)


def finding(what: str, changes: dict[str, list[Estimate]]) -> tuple[str, str, str]:
    """changes: by measure of NEAR, of the logarithm of the distance."""
    texts = []
    for measure, label in NEAR.items():
        texts.append(f"{label} {_range(changes[measure])} ({tally(changes[measure])})")
    return what, "; ".join(texts), _verdict([value for values in changes.values() for value in values])


def _range(changes: list[Estimate]) -> str:
    low, high = (f"{math.exp(value):.2g}" for value in (min(v.mean for v in changes), max(v.mean for v in changes)))
    return f"x {low}" if low == high else f"x {low} to {high}"


def _verdict(values: list[Estimate]) -> str:
    words = {value.word for value in values}
    if len(words) == 1:
        return words.pop()
    if sum(value.word != "no difference" for value in values) < RARE * len(values):
        return "no difference"
    decided = words - {"no difference"}
    if len(decided) == 2:
        worse = sum(value.word == "worse" for value in values)
        better = sum(value.word == "better" for value in values)
        return f"mixed, mostly {'worse' if worse > better else 'better'}" if worse != better else "mixed"
    return f"{decided.pop()} in part"


def _transfers(found: Quantized) -> Iterator[tuple[str, str, str]]:
    for method, against in (
        (q.SHARED, q.PLAIN),
        (q.SHARED, q.INTERPOLATED),
        (q.SAME, q.PLAIN),
        (q.OTHER_CLASSES, q.PLAIN),
    ):
        texts, values = [], []
        for kind in ("eps", "flow"):
            part = found.parts.get(f"transfer-{kind}")
            if part is None:
                continue
            for cell in q.transfers(kind):
                base = q.name(cell.setting, cell.form, against)
                if cell.method != method or cell.name not in part or base not in part:
                    continue
                changes = [part.log_change(cell.name, base, measure) for measure in NEAR]
                values += changes
                shown = ", ".join(f"{math.exp(value.mean):.2g} {value.word}" for value in changes)
                texts.append(f"{kind}, {cell.setting.steps} steps, {cell.setting.scheduler}: x {shown}")
        if values:
            what = {q.SHARED: "on another schedule, shared out", q.SAME: "of guidance 3 at 5"}.get(method, method)
            against_what = "" if against == q.PLAIN else f", against {against}"
            yield (
                f"Moment matching: maps {what.removeprefix('maps ')}{against_what} (features, pixels, MSE)",
                "; ".join(texts),
                _verdict(values),
            )
