"""Writing workflows as the frontend saves them, from Python: nodes with their inputs by name, laid out in columns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from .graph import is_widget

WIDTH, GAP, TITLE, ROW, WIDGET, TEXT = 300, 50, 30, 20, 24, 110
COLOURS = {"plain": "#3f5159", "gimbal": "#3f5945", "load": "#444444"}


@dataclass(eq=False)
class Node:
    id: int
    type: str
    info: dict
    saved: dict
    width: int
    height: int
    links: list[list[int]] = field(default_factory=list)

    def __getitem__(self, slot: int) -> tuple[Node, int]:
        return self, slot


class Workflow:
    """A graph that grows by `node`, `note` and `group`; `saved()` is what goes into the file."""

    def __init__(self, object_info: dict):
        self.object_info = object_info
        self.nodes: list[Node] = []
        self.links: list[list] = []
        self.groups: list[dict] = []

    def node(self, kind: str, *, caption: str = "", size: tuple[int, int] = (WIDTH, 0), **inputs: object) -> Node:
        """A node. caption: instead of its name; size: a height of 0 is as high as its rows.

        An input is a widget's value or another node's output, `node[slot]`. What is left out gets its default.

        ValueError: the node has no such input, or an input without a default is missing.
        """
        info = self.object_info[kind]
        made = Node(len(self.nodes) + 1, kind, info, {}, *size)
        slots, values, rows = [], [], 0
        known = {**info["input"].get("required", {}), **info["input"].get("optional", {})}
        if unknown := set(inputs) - set(known):
            raise ValueError(f"{kind} has no input {', '.join(sorted(unknown))}; it has {', '.join(known)}.")
        for name, (type_, *rest) in known.items():
            options = rest[0] if rest else {}
            given = inputs.get(name)
            if not is_widget(type_, options):
                slots.append({"name": name, "type": type_, "link": None})
                if isinstance(given, tuple):
                    slots[-1]["link"] = self._link(given, made, len(slots) - 1, type_)
                elif name in info["input"].get("required", {}):
                    raise ValueError(f"{kind} (node {made.id}) needs {name}; connect it.")
                continue
            choices = type_ if isinstance(type_, list) else options.get("options", [None])
            values.append(options.get("default", choices[0]) if given is None else given)
            rows += TEXT if options.get("multiline") else WIDGET
            if options.get("control_after_generate"):
                values.append("fixed")
                rows += WIDGET
        made.height = made.height or 16 + ROW * max(len(slots), len(info["output"])) + rows
        outputs = [
            {"name": name, "type": type_, "links": []}
            for name, type_ in zip(info["output_name"], info["output"], strict=True)
        ]
        made.saved = {
            "id": made.id,
            "type": kind,
            "pos": [0, 0],
            "size": [made.width, made.height],
            "flags": {},
            "order": len(self.nodes),
            "mode": 0,
            "inputs": slots,
            "outputs": outputs,
            "properties": {"Node name for S&R": kind},
            "widgets_values": values,
        }
        if caption:
            made.saved["title"] = caption
        self.nodes.append(made)
        return made

    def note(self, text: str, width: int = WIDTH, height: int = 200) -> Node:
        made = Node(len(self.nodes) + 1, "MarkdownNote", {}, {}, width, height)
        made.saved = {
            "id": made.id,
            "type": "MarkdownNote",
            "pos": [0, 0],
            "size": [width, height],
            "flags": {},
            "order": len(self.nodes),
            "mode": 0,
            "inputs": [],
            "outputs": [],
            "properties": {},
            "widgets_values": [text],
            "color": "#432",
            "bgcolor": "#653",
        }
        self.nodes.append(made)
        return made

    def columns(self, *columns: Sequence[Node | None], at: tuple[int, int] = (0, 0)) -> tuple[int, int]:
        """Place nodes in columns, top to bottom and left to right; -> where the next column and the next row may start."""
        x, bottom = at[0], at[1]
        for column in columns:
            y = at[1]
            for node in column:
                node.saved["pos"] = [x, y]
                y += node.height + TITLE + GAP
            bottom = max(bottom, y)
            x += max(node.width for node in column) + GAP
        return x, bottom

    def group(self, title: str, nodes: Sequence[Node], colour: str = "plain") -> None:
        left = min(node.saved["pos"][0] for node in nodes) - 20
        top = min(node.saved["pos"][1] for node in nodes) - 80
        right = max(node.saved["pos"][0] + node.width for node in nodes) + 20
        bottom = max(node.saved["pos"][1] + node.height for node in nodes) + 20
        self.groups.append(
            {
                "id": len(self.groups) + 1,
                "title": title,
                "bounding": [left, top, right - left, bottom - top],
                "color": COLOURS[colour],
                "font_size": 24,
                "flags": {},
            }
        )

    def saved(self) -> dict:
        return {
            "id": "00000000-0000-0000-0000-000000000000",
            "revision": 0,
            "last_node_id": len(self.nodes),
            "last_link_id": len(self.links),
            "nodes": [node.saved for node in self.nodes],
            "links": self.links,
            "groups": self.groups,
            "config": {},
            "extra": {"ds": {"scale": 0.6, "offset": [60, 120]}},
            "version": 0.4,
        }

    def _link(self, source: tuple[Node, int], target: Node, slot: int, kind: str) -> int:
        origin, output = source
        if origin.info["output"][output] != kind:
            raise ValueError(f"{target.type} takes {kind}, not output {output} of {origin.type}.")
        link = len(self.links) + 1
        self.links.append([link, origin.id, output, target.id, slot, kind])
        origin.saved["outputs"][output]["links"].append(link)
        return link
