"""Q-Drift: a quantized model's sampler, lengthened at each step by the drift that its error has taken."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import comfy.samplers
import torch
from comfy.k_diffusion import sampling
from comfy_api.latest import io
from torch import Tensor

from ..calibration.statistics import QDriftStatistics
from ..core.plan import Plan, make_plan
from ..core.qdrift import euler_gain
from ..core.schedule import step_index
from ..core.solvers import run
from . import _inputs, _origin
from ._model_kind import latent_format, path_of
from ._run import Window, exchange_sampler

logger = logging.getLogger(__name__)

Statistics = io.Custom("QDRIFT_STATS")
RULES = ("auto", "paper", "marginal", "accumulated")
REFUSE, FIRST_ORDER = "stop with an error", "correct each call"
BIAS = ("off", "deterministic", "stochastic")
ANCESTRAL = (sampling.sample_euler_ancestral, sampling.sample_euler_ancestral_RF)


@dataclass(frozen=True, eq=False)
class Correction:
    """What the two nodes have in common: statistics, how to use them, and the sampler function made of that."""

    node: str
    stats: QDriftStatistics
    strength: float
    channels: str
    rule: str
    variance: str
    bias: str
    unsupported: str
    window: Window

    def corrected(self, sampler: Any) -> comfy.samplers.KSAMPLER:
        """`sampler` with this correction built in.

        Raises:
            ValueError: it is of a kind of its own, or corrected already.
        """
        if type(sampler) is not comfy.samplers.KSAMPLER:
            raise ValueError(
                f"{self.node}: the sampler is a {type(sampler).__name__}, whose steps cannot be read; "
                "choose one of ComfyUI's samplers."
            )
        if isinstance(sampler.sampler_function, Corrected):
            raise ValueError(
                f"{self.node}: this run's sampler is corrected already; use the Q-Drift model or the Q-Drift sampler, not both."
            )
        function = Corrected(self, sampler.sampler_function)
        return comfy.samplers.KSAMPLER(function, dict(sampler.extra_options), dict(sampler.inpaint_options))

    def check_model(self, patcher: Any, x: Tensor, packed: bool) -> str:
        """The model's path, "ve" or "flow".

        Raises:
            ValueError: the statistics are of another kind of model.
        """
        about, path = self.stats.provenance, path_of(self.node, patcher)
        if packed:
            raise ValueError(
                f"{self.node}: this latent packs several parts (video and audio) into one; remove the node."
            )
        for what, ours, theirs in (
            ("path", path, about.path),
            ("number of latent channels", x.shape[1], about.latent_channels),
            ("latent format", latent_format(patcher), about.latent_format or latent_format(patcher)),
        ):
            if ours != theirs:
                raise ValueError(
                    f"{self.node}: the statistics are of another model: {what} {theirs}, this one has {ours}; "
                    "load the statistics of this model or calibrate it."
                )
        return path

    def say_differences(self, guider: Any, sampler: str) -> None:
        """One warning for all that differs from the calibration and may matter. What a file does not tell is not asked."""
        about, found = self.stats.provenance, []
        cfg = getattr(guider, "cfg", about.cfg)
        if abs(cfg - about.cfg) > 1e-6:
            found.append(f"cfg {cfg:g} instead of {about.cfg:g}")
        for what, ours, theirs in (
            ("sampler", sampler, about.solver.replace("ddim", "euler")),  # one function under two names
            ("device", _origin.environment()["device"], about.device),
            ("weights", _origin.quantization(guider.model_patcher), about.quantization),
        ):
            if theirs and ours != theirs:
                found.append(f"{what} {ours} instead of {theirs}")
        if found:
            logger.warning("%s: not as calibrated: %s. The statistics may fit less well.", self.node, "; ".join(found))

    def variance_at(self, model_sampling: Any) -> Any:
        def variance(sigma: float) -> Tensor:
            found = self.stats.variance(sigma, self.channels, self.variance)
            return found if self.window.covers(torch.tensor([sigma]), model_sampling) else torch.zeros_like(found)

        return variance

    def bias_at(self, sigma: float) -> tuple[Tensor, Tensor, Tensor]:
        """Slope, and the mean error where eps_hat is 0: E[delta | eps_hat] = slope eps_hat + intercept."""
        slope = self.strength * self.stats.slope(sigma, self.channels)
        return slope, torch.zeros_like(slope), self.strength * self.stats.intercept(sigma, self.channels)


class Corrected:
    """A sampler function, as ComfyUI's KSAMPLER calls it."""

    def __init__(self, correction: Correction, plain: Any):
        self.correction, self.plain = correction, plain
        self.__name__ = getattr(plain, "__name__", "sampler")

    def __call__(
        self,
        model: Any,
        x: Tensor,
        sigmas: Tensor,
        extra_args: dict | None = None,
        callback: Any = None,
        disable: bool | None = None,
        **options: Any,
    ) -> Tensor:
        extra_args, ours = extra_args or {}, self.correction
        if len(sigmas) < 2:
            return self.plain(model, x, sigmas, extra_args=extra_args, callback=callback, disable=disable, **options)
        guider = model.inner_model
        name = self.__name__.removeprefix("sample_").removesuffix("_function").removesuffix("_RF")
        path = ours.check_model(guider.model_patcher, x, packed=x.ndim == 3)
        ours.say_differences(guider, name)
        model_sampling = guider.model_patcher.get_model_object("model_sampling")
        ancestral = self.plain in ANCESTRAL and "noise_sampler" not in options
        try:
            plan = make_plan(
                "euler_ancestral" if ancestral else self.plain,
                sigmas,
                path=path,
                variance=ours.variance_at(model_sampling),
                strength=ours.strength,
                rule=ours.rule,
                options=options,
                model_sampling=model_sampling,
                bias=None if ours.bias == "off" else ours.bias_at,
                bias_mode="stochastic" if ours.bias == "stochastic" else "deterministic",
            )
        except ValueError as error:
            if ours.unsupported == REFUSE:
                raise ValueError(
                    f"{ours.node}: {error} Choose another sampler (euler, dpmpp_2m, heun, ...), or set 'unsupported' to "
                    f"{FIRST_ORDER!r}."
                ) from error
            per_call = _PerCall(model, ours, path, sigmas, model_sampling)
            logger.info("%s: %s, each call by itself, as if it were an Euler step.", ours.node, name)
            return self.plain(
                per_call, x, sigmas, extra_args=extra_args, callback=callback, disable=disable, **options
            )
        logger.info("%s: %s.", ours.node, plan.describe())
        return self._run(plan, model, x, extra_args, callback, ancestral)

    @staticmethod
    def _run(plan: Plan, model: Any, x: Tensor, extra_args: dict, callback: Any, ancestral: bool) -> Tensor:
        seed = extra_args.get("seed")
        return run(
            plan,
            lambda at, sigma: model(at, sigma, **extra_args),
            x,
            callback=callback,
            mask=extra_args.get("denoise_mask"),
            noise_sampler=sampling.default_noise_sampler(x, seed=seed) if ancestral else None,
            generator=None if seed is None else torch.Generator().manual_seed(seed + 1),
        )


class _PerCall:
    """A model whose noise prediction is lengthened at each call, for samplers whose steps are not known."""

    def __init__(self, model: Any, correction: Correction, path: str, sigmas: Tensor, model_sampling: Any):
        self._model, self._path, self._rule = model, path, correction.rule
        self._sigmas = sigmas.tolist()
        self._variance, self._strength = correction.variance_at(model_sampling), correction.strength

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def __call__(self, x: Tensor, sigma: Tensor, **options: Any) -> Tensor:
        denoised = self._model(x, sigma, **options)
        level = float(sigma.flatten()[0])
        following = self._sigmas[step_index(level, self._sigmas) + 1]
        alpha = 1.0 - level if self._path == "flow" and self._rule != "paper" else 1.0
        if alpha <= 0.0:
            return denoised
        # On flow V_eps = alpha^2 V_v, and eps = (x - alpha denoised)/sigma grows instead of the velocity.
        gain = (self._strength * euler_gain(level, following, alpha**2 * self._variance(level))).clamp(-1.0, 1.0)
        gain = gain.to(denoised).view(1, -1, *[1] * (x.ndim - 2))
        return denoised * (1.0 + gain) - x * (gain / alpha)


def options() -> list[io.Input]:
    return [
        io.Float.Input(
            "strength",
            default=1.0,
            min=0.0,
            max=2.0,
            step=0.05,
            tooltip="Multiplies the correction c of every step. 1 is the theory's; 0 changes nothing, bit for bit.",
        ),
        io.Combo.Input(
            "channels",
            options=["scalar", "channel"],
            default="scalar",
            tooltip="scalar: one error variance for all latent channels, steadier with few calibration runs. "
            "channel: one for each, as in the paper.",
        ),
        io.Combo.Input(
            "rule",
            options=list(RULES),
            default="auto",
            tooltip="How c follows from the variance. auto: the paper's for one-step samplers on eps models, its form in the "
            "right variable on flow models, and for multistep samplers what their errors really add up to. "
            "paper: as printed; over-corrects multistep samplers, and on flow models scales the picture's contrast.",
        ),
    ]


def advanced_options() -> list[io.Input]:
    return [
        io.Combo.Input(
            "variance",
            options=["conditional", "unconditional"],
            default="conditional",
            tooltip="conditional: what of the error cannot be told from the prediction. unconditional: all of it (the paper's "
            "ablation).",
        ),
        io.Combo.Input(
            "bias",
            options=list(BIAS),
            default="off",
            tooltip="Also takes off the error's mean given the prediction (D2-DPM). Here for comparison: the paper measured it "
            "to do harm (FID 31.7 to 75.1), and so did we at 3 and 4 bits.",
        ),
        io.Combo.Input(
            "unsupported",
            options=[REFUSE, FIRST_ORDER],
            default=REFUSE,
            tooltip="For samplers without a corrected form (uni_pc, adaptive ones, most stochastic ones): stop and say so, or "
            "correct each model call as if it were an Euler step.",
        ),
    ]


class GimbalQDrift(io.ComfyNode):
    NAME = "Q-Drift"

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="GimbalQDrift",
            display_name=cls.NAME,
            category="gimbal/qdrift",
            description="Corrects the sampling drift of a quantized model by statistics from Q-Drift Calibrate. Works under an "
            "ordinary KSampler, by exchanging the chosen sampler for its corrected form. No extra model calls.",
            inputs=[
                io.Model.Input("model", tooltip="The quantized model."),
                Statistics.Input("stats", tooltip="From Q-Drift Calibrate, Load or Merge."),
                *options(),
                *_inputs.window(),
                *advanced_options(),
            ],
            outputs=[io.Model.Output(display_name="model")],
        )

    @classmethod
    def execute(cls, model, stats, start_percent: float, end_percent: float, **chosen) -> io.NodeOutput:
        window = Window(start_percent, end_percent)
        window.check(cls.NAME)
        if chosen["strength"] == 0.0:
            return io.NodeOutput(model)
        correction = Correction(cls.NAME, stats, window=window, **chosen)
        return io.NodeOutput(exchange_sampler(model, cls.NAME, correction.corrected))


class GimbalQDriftSampler(io.ComfyNode):
    NAME = "Q-Drift Sampler"

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="GimbalQDriftSampler",
            display_name=cls.NAME,
            category="gimbal/qdrift",
            description="The corrected form of a sampler, for SamplerCustom and SamplerCustomAdvanced. The model stays as it is.",
            inputs=[
                Statistics.Input("stats", tooltip="From Q-Drift Calibrate, Load or Merge."),
                io.Combo.Input(
                    "sampler_name",
                    options=list(comfy.samplers.SAMPLER_NAMES),
                    default="euler",
                    tooltip="The sampler to correct.",
                ),
                *options(),
                *_inputs.window(),
                *advanced_options(),
            ],
            outputs=[io.Sampler.Output(display_name="sampler")],
        )

    @classmethod
    def execute(cls, stats, sampler_name: str, start_percent: float, end_percent: float, **chosen) -> io.NodeOutput:
        window = Window(start_percent, end_percent)
        window.check(cls.NAME)
        sampler = comfy.samplers.sampler_object(sampler_name)
        if chosen["strength"] == 0.0:
            return io.NodeOutput(sampler)
        return io.NodeOutput(Correction(cls.NAME, stats, window=window, **chosen).corrected(sampler))


NODES = [GimbalQDrift, GimbalQDriftSampler]
