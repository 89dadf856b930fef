"""Workflows as people save them (the frontend's format) to what the server's API takes."""

from __future__ import annotations

from .client import Workflow

WIDGET_TYPES = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")
MUTED, BYPASSED = 2, 4
# The frontend shows this extra widget beside every seed and saves its value after the seed's.
CONTROL = ("fixed", "increment", "decrement", "randomize")


def to_api(saved: dict, object_info: dict) -> Workflow:
    """Convert a saved workflow, given the server's /object_info.

    Notes and other nodes of the frontend alone are left out. ValueError names a node that the server does not know
    or that is muted or bypassed, which the frontend resolves in ways that a bundled workflow should not need.
    """
    links = {link[0]: [str(link[1]), link[2]] for link in saved["links"]}
    workflow: Workflow = {}
    for node in saved["nodes"]:
        if node["type"] in ("Note", "MarkdownNote"):
            continue
        if node["type"] not in object_info:
            raise ValueError(
                f"node {node['id']}: the server has no {node['type']}; install its pack or mend its name."
            )
        if node.get("mode", 0) in (MUTED, BYPASSED):
            raise ValueError(f"node {node['id']} ({node['type']}) is muted or bypassed; remove it.")
        workflow[str(node["id"])] = {
            "class_type": node["type"],
            "inputs": _inputs(node, object_info[node["type"]], links),
        }
    return workflow


def _inputs(node: dict, info: dict, links: dict[int, list]) -> dict:
    linked = {slot["name"]: links[slot["link"]] for slot in node.get("inputs", []) if slot.get("link") is not None}
    values = list(node.get("widgets_values", []))
    inputs: dict = {}
    for group in ("required", "optional"):
        for name, (kind, *rest) in info["input"].get(group, {}).items():
            options = rest[0] if rest else {}
            if is_widget(kind, options):
                if not values:
                    raise ValueError(f"node {node['id']} ({node['type']}): no saved value for {name}; save it anew.")
                inputs[name] = values.pop(0)
                if kind == "INT" and values and values[0] in CONTROL:
                    values.pop(0)
            if name in linked:
                inputs[name] = linked[name]
    return inputs


def is_widget(kind: object, options: dict) -> bool:
    return (isinstance(kind, list) or kind in WIDGET_TYPES) and not options.get("forceInput")
