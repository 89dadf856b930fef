"""A trial on held-out runs in words and tables."""

from __future__ import annotations

import math

from .measures import percent_more
from .text import percent
from .trial import Trial


def label(candidate: tuple[str, float]) -> str:
    """For tables and sentences: "moments", "moments at 0.5"."""
    name, strength = candidate
    return name if strength in (0.0, 1.0) else f"{name} at {strength:g}"


def sentence(trial: Trial) -> str:
    """What was tried, with its numbers, and the advice."""
    shown = ", ".join(
        f"{label(candidate)} {100 * math.sqrt(trial.mean_error(i)):.3g} %"
        for i, candidate in enumerate(trial.candidates)
    )
    many = "1 held-out run" if trial.runs == 1 else f"{trial.runs} held-out runs"
    tried = f"Tried on {many}, error of the final latent: {shown}.{_harm(trial)}"
    advice = trial.advice()
    if not advice.correction:
        return f"{tried} Nothing helped clearly in every run: leave this model as it is."
    return f"{tried} Advised: {advice.correction} at strength {advice.strength:g}."


def _harm(trial: Trial) -> str:
    """Why candidates are out whatever their error."""
    if trial.seen is None:
        return ""
    harm = {label(each): trial.seen.worse(i) for i, each in enumerate(trial.candidates) if i}
    told = ", ".join(f"{name} ({' and '.join(measures)})" for name, measures in harm.items() if measures)
    return f" Not advised, as it makes something clearly worse: {told}." if told else ""


def table(trial: Trial) -> list[str]:
    """Lines of text: a row for each way of sampling."""
    seen = trial.seen
    heads = f"{'error':>9} {'distance':>9} {'of plain':>9}"
    if seen is not None:
        heads += f" {'colour':>9} {'grain':>9} {'compos.':>9}"
    lines = ["", f"{'held-out runs':>18} {heads}  each run's error by plain's"]
    for i, candidate in enumerate(trial.candidates):
        ratios = [value / plain if plain else 1.0 for value, plain in zip(trial.error[i], trial.error[0], strict=True)]
        of_plain = trial.mean_error(i) / trial.mean_error(0) if trial.mean_error(0) else 1.0
        error, distance = (math.sqrt(value) for value in (trial.mean_error(i), trial.mean_distance(i)))
        row = f"{label(candidate):>18} {error:9.2%} {distance:9.2%} {of_plain:9.3f}"
        if seen is not None:
            grain = percent_more(seen.grain_change(i))
            row += f" {seen.size('colour', i):9.2%} {grain:+9.2%} {seen.size('composition', i):9.2%}"
        lines.append(f"{row}  {' '.join(f'{ratio:.3f}' for ratio in ratios)}")
    if seen is not None:
        lines += [
            "colour: means and deviations of the picture's channels, as a share of its contrast. grain: power of the finest",
            "detail, to full precision's. compos.: the coarsest forms, as a share of their own size. The nearer 0, the better.",
        ]
    return lines


def seen_lines(trial: Trial) -> list[str]:
    """What the advised correction does to colours, grain and composition, a line each; [] if nothing is advised, or the
    file does not tell. A line begins with "+" where it is clearly closer to full precision, a minus sign where farther,
    "=" where neither."""
    advice, seen = trial.advice(), trial.seen
    if not advice.correction or seen is None:
        return []
    index = trial.candidates.index((advice.correction, advice.strength))
    signs = {1: "+", 0: "=", -1: "\N{MINUS SIGN}"}
    colour, composition = ([percent(seen.size(name, i)) for i in (0, index)] for name in ("colour", "composition"))
    farther = seen.farther("composition", index)
    single = f"; farther in {farther} of {seen.pictures} pictures" if farther else ""
    said = {
        "colour": f"Colours and contrast: {colour[0]} off, now {colour[1]}",
        "grain": f"Grain: {_grain(seen.grain_change(0))}, now {_grain(seen.grain_change(index))}",
        "composition": f"Composition: {composition[0]} off, now {composition[1]}{single}",
    }
    return [f"{signs[seen.change(name, index)]} {text}" for name, text in said.items()]


def _grain(log_ratio: float) -> str:
    more = percent_more(log_ratio)
    return f"{percent(abs(more))} too {'much' if more > 0 else 'little'}"
