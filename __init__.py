"""Gimbal: training-free stabilizers for diffusion sampling, as ComfyUI nodes and as a torch library."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .nodes import GimbalExtension

WEB_DIRECTORY = "./web"


async def comfy_entrypoint() -> GimbalExtension:
    """ComfyUI's entry point. The import is here, so that `import gimbal.core` needs torch alone."""
    from .nodes import GimbalExtension

    return GimbalExtension()
