"""Whether statistics belong to a model and a run: what is refused, and what is only said."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..calibration.provenance import Provenance
from ..core.gain_formulas import PathName
from . import identity
from .messages import Messages
from .model_kind import latent_format, path_of


def check_model(node: str, about: Provenance, patcher: Any, x: Tensor, packed: bool) -> PathName:
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


def log_mismatches(about: Provenance, guider: Any, sampler: str, messages: Messages) -> None:
    """One warning for all that differs from the calibration and may matter. What a file does not tell is not asked."""
    found = []
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
