"""Writing subgraph blueprints: one node that holds a small graph, as the frontend publishes it from "Add Subgraph to Library"."""

from __future__ import annotations

from collections.abc import Mapping

from .author import GAP, Node, Workflow, stable_id

INPUTS, OUTPUTS = -10, -20  # the frontend's ids of a subgraph's two ends
SOCKET, HEAD = 20, 30


class Blueprint(Workflow):
    """A graph with open ends. Its nodes take from `outside[slot]`; `widget` and `output` name what else shows."""

    def __init__(self, name: str, object_info: dict, inputs: Mapping[str, str], description: str):
        """name: also the file's, which the frontend shows. inputs: type by name."""
        super().__init__(object_info, name)
        self.description = description
        self.inputs = [{"name": key, "type": kind, "links": []} for key, kind in inputs.items()]
        self.sockets = len(self.inputs)
        self.outputs: list[dict] = []
        self.values: list[object] = []
        self.outside = Node(INPUTS, "inputs", {"output": list(inputs.values())}, {"outputs": self.inputs}, 0, 0)

    def widget(self, name: str, node: Node, widget: str) -> None:
        """Show one of a node's widgets on the outer node, as `name`: an input too, the one form all frontends agree on."""
        if node.widget_slots[0] not in node.saved["inputs"]:
            node.saved["inputs"] += node.widget_slots
        (slot,) = (i for i, entry in enumerate(node.saved["inputs"]) if entry.get("widget") == {"name": widget})
        entry = node.saved["inputs"][slot]
        self.inputs.append({"name": name, "type": entry["type"], "links": []})
        self.outside.info["output"].append(entry["type"])
        entry["link"] = self._link(self.outside[len(self.inputs) - 1], node, slot, entry["type"])
        self.values.append(node.values[widget])

    def output(self, name: str, source: tuple[Node, int]) -> None:
        node, slot = source
        end = Node(OUTPUTS, "outputs", {}, {}, 0, 0)
        kind = node.info["output"][slot]
        self.outputs.append({"name": name, "type": kind, "links": [self._link(source, end, len(self.outputs), kind)]})

    def saved(self) -> dict:
        inner = {
            "id": stable_id(f"subgraph/{self.name}"),
            "version": 1,
            "state": {
                "lastGroupId": 0,
                "lastNodeId": len(self.nodes),
                "lastLinkId": len(self.links),
                "lastRerouteId": 0,
            },
            "revision": 0,
            "config": {},
            "name": self.name,
            **self._ends(),
            "widgets": [],
            "nodes": [node.saved for node in self.nodes],
            "groups": [],
            "links": [
                dict(zip(("id", "origin_id", "origin_slot", "target_id", "target_slot", "type"), link, strict=True))
                for link in self.links
            ],
            "extra": {},
        }
        node = {
            "id": 1,
            "type": inner["id"],
            "pos": [0, 0],
            "size": [340, HEAD + SOCKET * self.sockets + 24 * len(self.values)],
            "flags": {},
            "order": 0,
            "mode": 0,
            "inputs": [{"name": e["name"], "type": e["type"], "link": None} for e in self.inputs[: self.sockets]],
            "outputs": [{"name": e["name"], "type": e["type"], "links": []} for e in self.outputs],
            "title": self.name,
            "properties": {
                "cnr_id": "gimbal",
                "proxyWidgets": [["-1", e["name"]] for e in self.inputs[self.sockets :]],
            },
            "widgets_values": self.values,
        }
        return {
            "id": stable_id(f"blueprint/{self.name}"),
            "revision": 0,
            "last_node_id": 1,
            "last_link_id": 0,
            "nodes": [node],
            "links": [],
            "groups": [],
            "definitions": {"subgraphs": [inner]},
            "config": {},
            "extra": {"BlueprintDescription": self.description},
            "version": 0.4,
        }

    def _ends(self) -> dict:
        """The two ends, left and right of the nodes."""
        left = min(node.saved["pos"][0] for node in self.nodes) - 4 * GAP - 120
        right = max(node.saved["pos"][0] + node.width for node in self.nodes) + 4 * GAP

        def slots(entries: list[dict], x: int) -> list[dict]:
            return [
                {
                    "id": stable_id(f"{self.name}/{'in' if x == left else 'out'}/{entry['name']}"),
                    "name": entry["name"],
                    "type": entry["type"],
                    "linkIds": entry["links"],
                    "pos": [x + (100 if x == left else 20), SOCKET * (i + 1)],
                }
                for i, entry in enumerate(entries)
            ]

        return {
            "inputNode": {"id": INPUTS, "bounding": [left, 0, 120, 40 + SOCKET * len(self.inputs)]},
            "outputNode": {"id": OUTPUTS, "bounding": [right, 0, 120, 40 + SOCKET * len(self.outputs)]},
            "inputs": slots(self.inputs, left),
            "outputs": slots(self.outputs, right),
        }
