"""Gimbal: training-free stabilizers for diffusion sampling, as ComfyUI nodes and as a torch library."""

WEB_DIRECTORY = "./web"


async def comfy_entrypoint() -> object:
    """ComfyUI's entry point. The import is here, so that `import gimbal.core` needs torch alone."""
    from .demo.gimbal_demo.model import offer
    from .nodes import GimbalExtension

    offer()
    return GimbalExtension()
