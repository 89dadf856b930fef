"""What a node has to say: a line in the log, and the same words on the node itself in the graph.

ComfyUI shows text on a node by `PromptServer.send_progress_text`. Nothing here may end a run: without a server, without a
browser, or where the server takes no such text, the log is all there is.
"""

from __future__ import annotations

import logging
import sys
from dataclasses import dataclass
from typing import Any

from ..calibration.text import printable

logger = logging.getLogger(__name__)

# Some frontends read the text as HTML, and parts of it come from files: nothing in it may open a tag.
HARMLESS = str.maketrans({"<": "\u2039", ">": "\u203a"})


@dataclass(frozen=True)
class NodeId:
    """Which node of the queued graph speaks: "12", or "5:12" in a subgraph; None outside a graph.

    A type of its own, so that a model's identity can leave it out: a node's number changes no prediction.
    """

    value: str | None = None


NOWHERE = NodeId()


class Messages:
    """What one node says of one execution or one sampling run. The node shows all of it, a line for each message."""

    def __init__(self, node: str, node_id: NodeId) -> None:
        """node: display name, for the log."""
        self.node, self.node_id = node, node_id
        self._lines: list[str] = []

    def info(self, words: str) -> None:
        logger.info("%s: %s", self.node, printable(words, None))
        self.add(words)

    def warning(self, words: str) -> None:
        logger.warning("%s: %s", self.node, printable(words, None))
        self.add(words)

    def add(self, words: str) -> None:
        """On the node alone, below what was said before."""
        self._lines.append(words)
        on_node(self.node_id, "\n".join(self._lines))

    def meanwhile(self, words: str) -> None:
        """On the node alone, until the next message."""
        on_node(self.node_id, "\n".join([*self._lines, words]))


def on_node(node_id: NodeId, words: str) -> None:
    """Show text on a node, in place of what it showed. Only the browser that queued the graph gets it."""
    server: Any = getattr(getattr(sys.modules.get("server"), "PromptServer", None), "instance", None)
    if node_id.value is None or not hasattr(server, "send_progress_text"):
        return
    text = "\n".join(printable(line, None).translate(HARMLESS) for line in words.splitlines())
    try:
        server.send_progress_text(text, node_id.value, getattr(server, "client_id", None))
    except (RuntimeError, TypeError):  # its event loop is closed; a server of another make with other arguments
        logger.debug("no text could be shown on node %s", node_id.value, exc_info=True)
