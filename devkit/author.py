"""Writing workflows as the frontend saves them, from Python: nodes with their inputs by name, laid out on a grid."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from . import sizes
from .graph import is_widget

WIDTH, GAP, TITLE = 340, 40, 30
CORE = "comfy-core"  # as the registry calls ComfyUI's own nodes
COLOURS = {"plain": "#3f789e", "gimbal": "#6a9a5b", "load": "#8a8a8a"}
# What a workflow should fit into when it opens, where its top left goes, and the scale below which text is not drawn.
SCREEN, CORNER, READABLE = (1500, 810), (90, 150), 0.62


@dataclass(frozen=True)
class File:
    """A model file: where ComfyUI looks for it (a folder of models/), and where it can be had."""

    folder: str
    url: str


@dataclass(eq=False)
class Node:
    id: int
    type: str
    info: dict
    saved: dict
    width: int
    height: int
    room: int = 0  # the height that it is laid out with: the larger of both renderers'
    values: dict[str, object] = field(default_factory=dict)  # of its widgets
    widget_slots: list[dict] = field(default_factory=list)  # the inputs that its widgets can become

    def __getitem__(self, slot: int) -> tuple[Node, int]:
        return self, slot


Row = Sequence[Sequence[Node]]  # of columns, each from top to bottom


class Workflow:
    """A graph that grows by `node`, `note` and `group`; `saved()` is what goes into the file."""

    def __init__(self, object_info: dict, name: str = "workflow", files: Mapping[str, File] | None = None):
        """object_info: the server's. files: model files by name; a loader that names one carries its address."""
        self.name, self.object_info, self.files = name, object_info, files or {}
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
        slots, values, widgets, linked = [], [], [], {}
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
            if isinstance(given, tuple):
                linked[name], given = given, None
            made.values[name] = options.get("default", choices[0] if choices else None) if given is None else given
            values.append(made.values[name])
            shown = "COMBO" if isinstance(type_, list) else type_
            made.widget_slots.append({"name": name, "type": shown, "widget": {"name": name}, "link": None})
            widgets.append((type_, options))
            if options.get("control_after_generate"):
                values.append("fixed")
        models = [value for value in values if isinstance(value, str) and value in self.files]
        sockets, feet = max(len(slots), len(info["output"])), (_pack(info) != CORE) + bool(models)
        feet += any(options.get("advanced") for _, options in widgets)  # the button that unfolds them
        made.height = made.height or sizes.on_canvas(sockets, widgets)
        made.room = _after_a_run(info) + max(made.height, sizes.as_vue_node(sockets, widgets, feet))
        if linked:  # all of them: the one form that all frontends agree on
            for i, slot in enumerate(made.widget_slots, len(slots)):
                if slot["name"] in linked:
                    slot["link"] = self._link(linked[slot["name"]], made, i, slot["type"])
            slots += made.widget_slots
        outputs = [
            {"name": name, "type": type_, "links": []}
            for name, type_ in zip(info["output_name"], info["output"], strict=True)
        ]
        made.saved = self._saved(made, inputs=slots, outputs=outputs, widgets_values=values)
        made.saved["properties"] = {"Node name for S&R": kind, "cnr_id": _pack(info)}
        if models:  # the frontend offers what is missing
            made.saved["properties"]["models"] = [
                {"name": name, "url": self.files[name].url, "directory": self.files[name].folder} for name in models
            ]
        if caption:
            made.saved["title"] = caption
        self.nodes.append(made)
        return made

    def note(self, title: str, text: str, width: int = WIDTH, height: int = 200, room: int = 0) -> Node:
        """A note in Markdown. room: the height to keep free for it, at least its own."""
        made = Node(len(self.nodes) + 1, "MarkdownNote", {}, {}, width, height, max(height, room))
        made.saved = self._saved(made, inputs=[], outputs=[], widgets_values=[text])
        made.saved |= {"title": title, "properties": {}, "color": "#432", "bgcolor": "#653"}
        self.nodes.append(made)
        return made

    def grid(self, *rows: Row, at: tuple[int, int] = (0, 0)) -> int:
        """Place rows of columns below each other, columns of the same number in line; -> where the next grid's x may be.

        A row's last column may be wider than those above it.
        """
        widths: dict[int, int] = {}
        for row in rows:
            for i, column in enumerate(row[:-1]):
                widths[i] = max([widths.get(i, 0), *(node.width for node in column)])
        y, right = at[1], at[0]
        for row in rows:
            x, bottom = at[0], y
            for i, column in enumerate(row):
                top = y
                for node in column:
                    node.saved["pos"] = [x, top]
                    top += node.room + TITLE + GAP
                    right = max(right, x + node.width)
                bottom = max(bottom, top)
                x += widths.get(i, 0) + GAP
            y = bottom + 2 * GAP
        return right + 2 * GAP

    def group(self, title: str, nodes: Sequence[Node], colour: str = "plain") -> None:
        left = min(node.saved["pos"][0] for node in nodes) - 20
        top = min(node.saved["pos"][1] for node in nodes) - 80
        right = max(node.saved["pos"][0] + node.width for node in nodes) + 20
        bottom = max(node.saved["pos"][1] + node.room for node in nodes) + 20
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
            "id": stable_id(self.name),
            "revision": 0,
            "last_node_id": len(self.nodes),
            "last_link_id": len(self.links),
            "nodes": [node.saved for node in self.nodes],
            "links": self.links,
            "groups": self.groups,
            "config": {},
            "extra": {"ds": self._view()},
            "version": 0.4,
        }

    def _view(self) -> dict:
        """Scale and offset at which the whole graph is seen, or as much of it as stays readable."""
        boxes = [[*node.saved["pos"], node.width, node.room] for node in self.nodes]
        boxes += [group["bounding"] for group in self.groups]
        left, top = min(box[0] for box in boxes), min(box[1] for box in boxes)
        width = max(box[0] + box[2] for box in boxes) - left
        height = max(box[1] + box[3] for box in boxes) - top
        scale = round(max(READABLE, min(1.0, SCREEN[0] / width, SCREEN[1] / height)), 3)
        return {"scale": scale, "offset": [round(CORNER[0] / scale - left), round(CORNER[1] / scale - top)]}

    def _saved(self, node: Node, **more: object) -> dict:
        return {
            "id": node.id,
            "type": node.type,
            "pos": [0, 0],
            "size": [node.width, node.height],
            "flags": {},
            "order": len(self.nodes),
            "mode": 0,
            **more,
        }

    def _link(self, source: tuple[Node, int], target: Node, slot: int, kind: str) -> int:
        origin, output = source
        if origin.info["output"][output] != kind:
            raise ValueError(f"{target.type} takes {kind}, not output {output} of {origin.type}.")
        link = len(self.links) + 1
        self.links.append([link, origin.id, output, target.id, slot, kind])
        origin.saved["outputs"][output]["links"].append(link)
        return link


def stable_id(name: str) -> str:
    """An id that stays the same whenever the file is written anew."""
    return str(uuid.uuid5(uuid.NAMESPACE_URL, f"https://github.com/gimbal-nodes/gimbal/{name}"))


def _after_a_run(info: dict) -> int:
    """What a node of the pack grows by: its words, if it knows its own number, and its picture."""
    if _pack(info) == CORE:
        return 0
    picture = sizes.CARD if "QDRIFT_STATS" in info["output"] else sizes.SHOWN
    return sizes.SAID * ("unique_id" in info["input"].get("hidden", {})) + picture * info.get("output_node", False)


def _pack(info: dict) -> str:
    """The registry's name of the pack a node comes from, by which ComfyUI-Manager finds what is missing."""
    module = info["python_module"]
    return module.removeprefix("custom_nodes.") if module.startswith("custom_nodes.") else CORE
