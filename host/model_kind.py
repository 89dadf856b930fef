"""What kind of model a patcher holds, in the words of the statistics file."""

from __future__ import annotations

from typing import Any

from comfy import model_sampling

from ..core.gain_formulas import PathName


def path_of(node: str, patcher: Any) -> PathName:
    """ "ve" for eps, v and EDM models, "flow" for flow-matching ones (METHODS.md, the table of paths).

    Raises:
        ValueError: the model's latent mixes picture and noise in a way of its own.
    """
    sampling = patcher.get_model_object("model_sampling")
    own = {"V_PREDICTION_DDPM", "IMG_TO_IMG", "IMG_TO_IMG_FLOW", "IMG_TO_IMG_VELOCITY", "ModelSamplingAV"}
    names = {base.__name__ for base in type(sampling).__mro__}
    if not names & own:
        if isinstance(sampling, model_sampling.CONST):
            return "flow"
        # v-prediction and EDM derive from EPS. Cosmos' network works on a flow path, its sampler on x0 + sigma n.
        if isinstance(sampling, (model_sampling.EPS, model_sampling.COSMOS_RFLOW)):
            return "ve"
    raise ValueError(
        f"{node}: models sampled as {', '.join(base.__name__ for base in type(sampling).__bases__)} are not known here; "
        "use an eps, v, EDM or flow-matching model."
    )


def latent_format(patcher: Any) -> str:
    """Its name, such as SD15 or Flux."""
    return type(patcher.model.latent_format).__name__
