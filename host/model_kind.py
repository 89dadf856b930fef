"""What kind of model a patcher holds, in the words of the statistics file, and what nodes have put on it."""

from __future__ import annotations

from collections.abc import Iterator

from comfy import model_sampling
from comfy.model_patcher import ModelPatcher

from ..core.gain_formulas import PathName


def path_of(node: str, patcher: ModelPatcher) -> PathName:
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


def is_flow(patcher: ModelPatcher) -> bool:
    """Whether it is a flow-matching model. False for those that `path_of` does not know, too."""
    try:
        return path_of("", patcher) == "flow"
    except ValueError:
        return False


def latent_format(patcher: ModelPatcher) -> str:
    """Its name, such as SD15 or Flux."""
    return type(patcher.model.latent_format).__name__


def hook_names(model: ModelPatcher) -> Iterator[str]:
    """Names under which nodes have left something on a model: wrappers, options, functions."""
    options = model.model_options
    transformer = options.get("transformer_options", {})
    yield from transformer
    for by_kind in (model.wrappers, transformer.get("wrappers", {})):
        for kind in by_kind.values():
            for key, wrappers in kind.items():
                yield str(key)
                yield from map(_name, wrappers)
    for value in options.values():
        if callable(value):
            yield _name(value)
        elif isinstance(value, list):
            yield from map(_name, value)
    for key, value in model.object_patches.items():
        yield key
        yield _name(value)


def _name(value: object) -> str:
    kind = value if hasattr(value, "__qualname__") else type(value)
    return f"{kind.__module__}.{kind.__qualname__}"


def compiled(model: ModelPatcher) -> bool:
    """Whether torch.compile stands between the network's modules and a call."""
    if "torch_compile_kwargs" in model.model_options or any("torch.compile" in word for word in hook_names(model)):
        return True
    if any(hasattr(value, "_orig_mod") for value in model.object_patches.values()):
        return True
    return any(hasattr(module, "_orig_mod") for module in model.model.diffusion_model.modules())
