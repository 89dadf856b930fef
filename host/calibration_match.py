"""Whether statistics belong to a model and a run: what is refused, and what is only said."""

from __future__ import annotations

from comfy.model_patcher import ModelPatcher
from comfy.samplers import CFGGuider
from torch import Tensor

from ..calibration.provenance import Provenance
from ..core.gain_formulas import PathName
from . import identity
from .messages import Messages
from .model_kind import latent_format, path_of


def check_model(node: str, about: Provenance, patcher: ModelPatcher, x: Tensor, packed: bool) -> PathName:
    """The model's path, "ve" or "flow".

    Raises:
        ValueError: the statistics are of another kind of model.
    """
    path = path_of(node, patcher)
    if packed:
        raise ValueError(f"{node}: this latent packs several parts (video and audio) into one; remove the node.")
    for what, ours, theirs in (
        ("path", path, about.path),
        ("number of latent channels", x.shape[1], about.latent_channels),
        ("latent format", latent_format(patcher), about.latent_format or latent_format(patcher)),
    ):
        if ours != theirs:
            raise ValueError(
                f"{node}: the statistics are of another model: {what} {theirs}, this one has {ours}; "
                "load the statistics of this model or calibrate it."
            )
    return path


def compare_weights(node: str, about: Provenance, patcher: ModelPatcher) -> str:
    """What differs about the model's weights, for `log_mismatches`; empty if nothing does, or the file does not tell.

    Raises:
        ValueError: it is the full-precision model of the calibration.
    """
    if not about.quantized_digest:
        return ""
    weights = identity.weights_digest(patcher)
    if weights == about.full_digest != about.quantized_digest:
        raise ValueError(
            f"{node}: model is the full-precision model of the calibration, which has nothing to repair; connect the "
            f"quantized one ({about.quantized_model or 'its twin'})."
        )
    return "" if weights == about.quantized_digest else "other weights (another file, number format or LoRA)"


def log_mismatches(about: Provenance, guider: CFGGuider, sampler: str, weights: str, messages: Messages) -> None:
    """One warning for all that differs from the calibration and may matter. What a file does not tell is not asked.

    weights: as `compare_weights` found them.
    """
    found = [weights] if weights else []
    cfg = getattr(guider, "cfg", about.cfg)
    if abs(cfg - about.cfg) > 1e-6:
        found.append(f"cfg {cfg:g} instead of {about.cfg:g}")
    for what, ours, theirs in (
        ("sampler", sampler, about.solver.replace("ddim", "euler")),  # one function under two names
        ("device", identity.environment()["device"], about.device),
        ("weights", identity.quantization(guider.model_patcher), about.quantization),
    ):
        if theirs and ours != theirs:
            found.append(f"{what} {ours} instead of {theirs}")
    if found:
        messages.warning(f"not as calibrated: {'; '.join(found)}. The statistics may fit less well.")
