"""Nodes of other packs that our workflows use, in the words of /object_info; the server that writes them need not have them."""

from __future__ import annotations

from .files import FLUX_GGUF

FOREIGN = {
    # city96/ComfyUI-GGUF, nodes.py
    "UnetLoaderGGUF": {
        "name": "UnetLoaderGGUF",
        "display_name": "Unet Loader (GGUF)",
        "category": "bootleg",
        "input": {"required": {"unet_name": [[FLUX_GGUF]]}},
        "output": ["MODEL"],
        "output_name": ["MODEL"],
        "output_is_list": [False],
        "output_node": False,
        "python_module": "custom_nodes.comfyui-gguf",
    }
}
