"""The workflows in workflows/ and demo/workflows/, as `python dev.py workflows` writes them. Change them here, not in the files."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from ..author import Workflow
from . import demo, flux, gguf, qdrift, qwen_image, sd15, sd35, sdxl, simulated, try_it, wan
from .files import FILES
from .foreign import FOREIGN

Recipe = Callable[[Workflow], None]

# By file name, which is all that the template browser has for a title and a description: what it does, then the model.
RECIPES: Mapping[str, Recipe] = {
    "Try it - Bring colours back": try_it.four_bits,
    "Try it - Calm burnt guidance": try_it.burnt,
    "Try it - Is it better or only weaker": try_it.better_or_weaker,
    "Fix burnt colours - SD1.5": sd15.burnt,
    "Fix burnt colours - SDXL": sdxl.burnt,
    "Fix burnt colours - SD3.5": sd35.burnt,
    "Fix burnt colours - Flux": flux.burnt,
    "Fix burnt colours, all nodes - SDXL": sdxl.every_node,
    "Fix burnt inpainting - SD1.5": sd15.inpainting,
    "Fix a burnt second pass - SD1.5": sd15.second_pass,
    "Fix burnt video - Wan 2.1": wan.burnt,
    "Is it better or only weaker - SD1.5": sd15.better_or_weaker,
    "Guide calm places - SDXL": sdxl.calm_places,
    "Guide calm places - Qwen-Image": qwen_image.calm_places,
    "Bring colours back - 4-bit SD1.5": simulated.four_bits,
    "Bring colours back - Flux GGUF": gguf.bring_back,
    "Reuse a calibration - Flux GGUF": gguf.use_again,
    "Does my fp8 model need repair - Flux": qdrift.judge_fp8,
}
DEMO_RECIPES: Mapping[str, Recipe] = {"micrograin": demo.micrograin, "multipass": demo.multipass}


def write(name: str, object_info: dict) -> Workflow:
    """The workflow of that name, given the server's /object_info."""
    flow = Workflow({**object_info, **FOREIGN}, name, FILES)
    {**RECIPES, **DEMO_RECIPES}[name](flow)
    return flow
