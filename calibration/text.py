"""Text that others wrote: shown in messages, and read as JSON."""

from __future__ import annotations

import json
import math
from typing import Any

MOST_SHOWN = 300  # characters of a foreign text in a message


def printable(value: object, most: int | None = MOST_SHOWN) -> str:
    """A path or a foreign text for a message, a log line or the screen: on one line, and encodable.

    A file name may hold bytes that are no text, which Python reads as surrogates; writing these to a log or a socket
    raises UnicodeEncodeError. They and all control characters become backslash escapes.

    Args:
        most: longer texts are cut in the middle; None shows all.
    """
    text = str(value)
    if most is not None and len(text) > most:
        text = f"{text[: most // 2]}...{text[-(most // 2) :]}"
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode("ascii") for letter in text
    )


def strict_json(text: str) -> Any:
    """A JSON value, in which every name of an object stands once and every number is finite.

    Raises:
        ValueError: it is no such JSON, or nested too deeply.
    """
    try:
        return json.loads(text, object_pairs_hook=_each_once, parse_constant=_refuse_constant, parse_float=_finite)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"it is no JSON ({error})") from None


def _each_once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in found if names.count(name) > 1)
        raise ValueError(f"it has {printable(twice, 80)!r} twice")
    return found


def _refuse_constant(name: str) -> object:
    raise ValueError(f"it holds {name}, which is no number")


def _finite(text: str) -> float:
    value = float(text)
    if value in (float("inf"), float("-inf")):
        raise ValueError(f"it holds {printable(text, 40)}, which is too large")
    return value


def is_number(value: object, low: float, high: float) -> bool:
    """Whether it is a real number from low to high; whole ones may have any number of digits. NaN and bool are not."""
    return isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high


def is_whole(value: object, low: int, high: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def percent(share: float) -> str:
    """A share of 0 or more for a sentence: "0.5 %", "12 %"."""
    if not math.isfinite(share):
        return "more than all"
    value = 100 * share
    if value < 0.01:
        return "less than 0.01 %"
    return f"{value:.0f} %" if value >= 10 else f"{value:.2g} %"
