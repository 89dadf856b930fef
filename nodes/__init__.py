"""ComfyUI nodes: thin classes around the kernels of core/."""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io

from ..demo.gimbal_demo import nodes as try_it
from . import (
    aqclip,
    confidence,
    equal_strength,
    micrograin,
    precision_plan,
    qdrift,
    qdrift_calibrate,
    qdrift_files,
    qdrift_trajectory,
    samg,
    simulate_quantization,
    stabilise,
)

MODULES = (
    micrograin,
    aqclip,
    confidence,
    stabilise,
    samg,
    equal_strength,
    qdrift_calibrate,
    qdrift_trajectory,
    qdrift_files,
    qdrift,
    precision_plan,
    simulate_quantization,
    try_it,
)


class GimbalExtension(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [node for module in MODULES for node in module.NODES]
