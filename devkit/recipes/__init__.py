"""The workflows in workflows/ and demo/workflows/, as `python dev.py workflows` writes them. Change them here, not in the files."""

from __future__ import annotations

from collections.abc import Callable

from ..author import Workflow
from . import demo, flux, gguf, qdrift, qwen_image, sd15, sd35, sdxl, simulated, wan
from .files import FILES
from .foreign import FOREIGN

Recipe = Callable[[Workflow], None]

RECIPES: tuple[Recipe, ...] = (
    sd15.sd15_side_by_side,
    sd15.qsilk_multipass,
    sd15.inpainting,
    sdxl.sdxl_side_by_side,
    sdxl.stacked,
    sd35.sd35_side_by_side,
    flux.flux_side_by_side,
    qwen_image.qwen_image_side_by_side,
    wan.wan_side_by_side,
    qdrift.qdrift_calibrate,
    qdrift.qdrift_side_by_side,
    gguf.qdrift_gguf_calibrate,
    gguf.qdrift_gguf_side_by_side,
    simulated.qdrift_simulated,
)
DEMO_RECIPES: tuple[Recipe, ...] = (demo.micrograin, demo.multipass)


def write(recipe: Recipe, object_info: dict) -> Workflow:
    """The workflow of a recipe, given the server's /object_info."""
    flow = Workflow({**object_info, **FOREIGN}, recipe.__name__, FILES)
    recipe(flow)
    return flow
