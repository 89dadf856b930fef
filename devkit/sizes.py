"""How high the frontend draws nodes: on the canvas, and as Vue nodes ("Nodes 2.0"), in the graph's units."""

from __future__ import annotations

from collections.abc import Sequence

Widget = tuple[object, dict]  # its type and options, as /object_info has them

SOCKET = 20  # a row of an input and an output, in both
CANVAS_HEAD, CANVAS_WIDGET, CANVAS_TEXT = 16, 24, 110
# As measured on frontend 1.58.1. A Vue node grows to these whatever size was saved. A pack's name stands below its nodes, and
# "Issues" below a loader whose file is missing.
VUE_HEAD, VUE_WIDGET, VUE_STRING, VUE_TEXT, VUE_FOOT = 14, 28, 36, 68, 24
# By which a node of the pack grows below its widgets: by what it says of a run, by a picture, by a calibration's card.
SAID, SHOWN, CARD = 70, 300, 730


def on_canvas(sockets: int, widgets: Sequence[Widget]) -> int:
    """Without the title. A seed has a second widget, for what becomes of it after a run."""
    rows = [CANVAS_TEXT if options.get("multiline") else CANVAS_WIDGET for _, options in widgets]
    rows += [CANVAS_WIDGET for _, options in widgets if options.get("control_after_generate")]
    return CANVAS_HEAD + SOCKET * sockets + sum(rows)


def as_vue_node(sockets: int, widgets: Sequence[Widget], feet: int) -> int:
    """Without the title. feet: lines below the node."""
    rows = [_vue_row(type_, options) for type_, options in widgets]
    return VUE_HEAD + SOCKET * sockets + sum(rows) + VUE_FOOT * feet


def _vue_row(type_: object, options: dict) -> int:
    if options.get("multiline"):
        return VUE_TEXT
    return VUE_STRING if type_ == "STRING" else VUE_WIDGET
