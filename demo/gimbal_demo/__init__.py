"""ComfyUI nodes for the demo model: its classes, its pictures, and a labelled contact sheet. Not part of what users install."""


async def comfy_entrypoint():
    """Lazy, so that demo/train.py can import this package without ComfyUI."""
    from .nodes import GimbalDemoExtension

    return GimbalDemoExtension()
