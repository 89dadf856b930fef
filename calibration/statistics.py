"""Q-Drift statistics: what a calibration found, per sigma and channel, and the file it lives in."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ..core.layer_correction import LayerOffsets
from . import files, layer_fields
from .correctors import Beside, map_names
from .found_plan import FIELD, FoundPlan
from .interpolation import interpolated
from .merging import merged_fields
from .moment_stack import merged, stacked
from .moments import JointMoments
from .provenance import Provenance
from .state_map import StateMap
from .text import printable
from .trial import Trial
from .validate import contents_fault, derived_variance

TRIAL = "trial"  # in the metadata
Channels = Literal["channel", "scalar"]
Kind = Literal["conditional", "unconditional"]


@dataclass(frozen=True, eq=False)
class QDriftStatistics:
    """Joint moments of (eps_hat, delta) at each calibrated sigma, and where they come from.

    Source: Q-Drift Eq. 10-15, METHODS.md 4.1 and 4.3. All tensors on the CPU; treat them as read-only. C channels, S
    sigmas, T sigmas of the state map, R runs.

    Attributes:
        sigma: (S,) float64, positive, strictly decreasing: the noise levels at which the model was called.
        count: (S,) int64, positions. mean: (S, 2, C), m2: (S, 3, C) float64, as in JointMoments.
        provenance: the conditions of the calibration.
        state_sigma, state_scale, state_shift: (T,) float64, (T, C) and (T, C) float32, or None: the state that a step
            ends in at noise level state_sigma is to be mapped to scale x + shift. The last level may be 0.
        state_scale_drift, state_shift_drift, state_scale_layers, state_shift_layers: (T, C) float32 or None: the same,
            found with Q-Drift's or with the layer correction on.
        run_variance: (R, S, C) float32 or None: the conditional variance that each run alone gives.
        layers: the layer correction (section 4.5), its offsets bfloat16 as in the file, or None.
        plan: the precision plan under which all of it was found, or None. trial: what the corrections did on held-out runs,
            or None.
    Raises:
        ValueError: a tensor's dtype, shape or value cannot be, named.
    """

    sigma: Tensor
    count: Tensor
    mean: Tensor
    m2: Tensor
    provenance: Provenance
    state_sigma: Tensor | None = None
    state_scale: Tensor | None = None
    state_shift: Tensor | None = None
    state_scale_drift: Tensor | None = None
    state_shift_drift: Tensor | None = None
    state_scale_layers: Tensor | None = None
    state_shift_layers: Tensor | None = None
    run_variance: Tensor | None = None
    layers: LayerOffsets | None = None
    plan: FoundPlan | None = None
    trial: Trial | None = None

    def __post_init__(self) -> None:
        fault = contents_fault(self._given(), self.provenance.latent_channels, self.provenance.runs)
        if fault:
            raise ValueError(f"QDriftStatistics: {fault}; collect the moments again.")

    def _given(self) -> dict[str, Tensor]:
        own = {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}
        return {**own, **layer_fields.tensors_of(self.layers)}

    @classmethod
    def from_runs(
        cls,
        sigma: Sequence[float] | Tensor,
        runs: Sequence[Sequence[JointMoments]],
        provenance: Provenance,
        state_map: tuple[Sequence[float] | Tensor, Tensor, Tensor] | None = None,
        drift_map: tuple[Tensor, Tensor] | None = None,
    ) -> QDriftStatistics:
        """Statistics of R runs, merged; what each run alone gives is kept as run_variance.

        Args:
            sigma: S noise levels, decreasing.
            runs: for each run, in the order of provenance.seeds, the moments at each sigma.
            provenance: of all runs.
            state_map: T noise levels, scale (T, C), shift (T, C). drift_map: scale and shift found with Q-Drift on.
        Raises:
            ValueError: as the class says, or a run does not have S moments.
        """
        levels = torch.as_tensor(sigma, dtype=torch.float64, device="cpu")
        if not runs or any(len(run) != len(levels) for run in runs):
            raise ValueError(
                f"QDriftStatistics.from_runs: runs have {[len(run) for run in runs]} moments for {len(levels)} sigmas; "
                "pass one for each sigma in each run."
            )
        alone = torch.stack([torch.stack([moments.conditional_variance() for moments in run]) for run in runs])
        state = {"run_variance": alone.float()}
        if state_map is not None:
            state["state_sigma"] = torch.as_tensor(state_map[0], dtype=torch.float64, device="cpu")
            state["state_scale"], state["state_shift"] = (part.to("cpu", torch.float32) for part in state_map[1:])
        if drift_map is not None:
            state["state_scale_drift"], state["state_shift_drift"] = (
                part.to("cpu", torch.float32) for part in drift_map
            )
        count, mean, m2 = stacked(merged(runs))
        return cls(levels, count, mean, m2, provenance, layers=None, plan=None, trial=None, **state)

    @property
    def channels(self) -> int:
        return self.provenance.latent_channels

    def moments(self, index: int) -> JointMoments:
        """The moments at sigma[index]."""
        return JointMoments.from_parts(int(self.count[index]), self.mean[index], self.m2[index])

    def variance(self, sigma: float, channels: Channels = "channel", kind: Kind = "conditional") -> Tensor:
        """The error's variance at a noise level: linear in log sigma between calibrated ones, held beyond them.

        Args:
            sigma: noise level >= 0.
            channels: "channel" per channel (the paper), "scalar" all channels as one population.
            kind: "conditional" V, Eq. 15; "unconditional" Var(delta), an ablation.
        Returns:
            (C,) float32 on the CPU; with "scalar" C times the same.
        Raises:
            ValueError: sigma is negative or NaN, or an option is unknown.
        """
        readers = {
            "conditional": JointMoments.conditional_variance,
            "unconditional": JointMoments.unconditional_variance,
        }
        if kind not in readers:
            raise ValueError(f"QDriftStatistics.variance: kind is {kind!r}; pass one of {', '.join(readers)}.")
        return self._at("variance", sigma, channels, readers[kind])

    def slope(self, sigma: float, channels: Channels = "channel") -> Tensor:
        """a = Cov/Var(eps_hat) at a noise level, (C,) float32; arguments and errors as in `variance`."""
        return self._at("slope", sigma, channels, JointMoments.slope)

    def intercept(self, sigma: float, channels: Channels = "channel") -> Tensor:
        """b in E[delta | eps_hat] = a eps_hat + b at a noise level, (C,) float32; otherwise as `slope`."""
        return self._at("intercept", sigma, channels, JointMoments.intercept)

    def state_map(self, beside: Beside = "") -> StateMap | None:
        """Moment matching's maps, those found by themselves or beside another correction; None where the file has none."""
        scale, shift = (getattr(self, name) for name in map_names(beside))
        if self.state_sigma is None or scale is None or shift is None:
            return None
        return StateMap(float(self.sigma[0]), self.state_sigma, scale, shift)

    def _at(self, name: str, sigma: float, channels: str, read: Callable[[JointMoments], Tensor]) -> Tensor:
        where = f"QDriftStatistics.{name}"
        if channels not in ("channel", "scalar"):
            raise ValueError(f"{where}: channels is {channels!r}; pass channel or scalar.")

        def row(index: int) -> Tensor:
            moments = self.moments(index)
            return read(moments) if channels == "channel" else read(moments.pooled()).expand(self.channels)

        return interpolated(where, self.sigma, sigma, row).float()

    def save(self, path: str | os.PathLike[str], replace: bool = True) -> None:
        """Write the file (DESIGN.md, Q-Drift statistics file): whole or not at all.

        Args:
            replace: whether a file of that name is replaced. If not, of two processes that write at once one gets the
                name and the other one FileExistsError.
        Raises:
            ValueError: path is no path.
            FileExistsError: the name is taken and replace is False.
            OSError: the folder is missing, full or closed to us.
        """
        path = files.as_path("QDriftStatistics.save", path)
        tensors = {**self._given(), "variance": derived_variance(self.count, self.m2)}
        metadata = {**self.provenance.to_metadata(), **layer_fields.metadata_of(self.layers)}
        if self.plan is not None:
            metadata[FIELD] = self.plan.to_text()
        if self.trial is not None:
            metadata[TRIAL] = self.trial.to_text()
        files.write(path, tensors, metadata, replace)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> QDriftStatistics:
        """Read a file and check all of it. Tensors and metadata that version 1 does not know are ignored.

        Raises:
            ValueError: the file cannot be used; names the file, what is wrong and the remedy.
            FileNotFoundError, PermissionError: as the system reports them.
        """
        path = files.as_path("QDriftStatistics.load", path)
        try:
            tensors, metadata = files.read(path)
        except ValueError as error:
            raise ValueError(f"{printable(path, None)}: {error}") from error
        try:
            provenance = Provenance.from_metadata(metadata)
            trial = Trial.from_text(metadata[TRIAL]) if TRIAL in metadata else None
            plan = FoundPlan.from_text(metadata[FIELD]) if FIELD in metadata else None
            layers = layer_fields.take(tensors, metadata)
        except ValueError as error:
            raise ValueError(f"{printable(path, None)}: {str(error).rstrip('.')}{files.REMEDY}") from error
        del tensors["variance"]  # it follows from the others, and did so
        return cls(**tensors, provenance=provenance, layers=layers, plan=plan, trial=trial)

    @classmethod
    def merge(cls, parts: Sequence[QDriftStatistics]) -> QDriftStatistics:
        """The statistics of all runs of all parts, as if calibrated at once. A single part comes back as it is.

        State maps are left out: each was found with the earlier ones in place, so their average is no such thing.
        run_variance, layers (their mean by runs), trial (of what is left) and a common plan are kept if every part has them.
        Raises:
            ValueError: no parts; sigmas, models, settings or plans differ (named); or a run is in two parts.
        """
        where = "QDriftStatistics.merge"
        if not parts:
            raise ValueError(f"{where}: there is nothing to merge; pass at least one.")
        if len(parts) == 1:
            return parts[0]
        try:
            return cls(**merged_fields(parts))
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error

    def describe(self) -> str:
        """Everything in it as text: settings, a line per sigma, the verdict. Lines end in a newline."""
        from . import report  # functions of these statistics; the methods stay for those who call them

        return report.describe(self)

    def verdict(self) -> str:
        """One sentence: how large the error is, and what to expect of correcting it."""
        from . import report

        return report.verdict(self)
