"""ComfyUI nodes: thin classes around the kernels of core/."""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io

from . import aqclip, micrograin, samg


class GimbalExtension(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [*micrograin.NODES, *aqclip.NODES, *samg.NODES]
