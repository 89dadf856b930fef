"""Small random-weight models of several families, saved to files and loaded by ComfyUI's own loader.

Imported after ComfyUI (fixture `comfy`). A random network is a fine stand-in wherever only the plumbing counts: it is
a fixed, smooth, non-trivial function of latent, sigma and conditioning.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.model_patcher
import comfy.sample
import comfy.sd
import comfy.supported_models
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn


@dataclass(frozen=True)
class Family:
    model: str  # class in comfy.supported_models
    config: dict
    latent: tuple[int, ...]  # without the batch
    context: tuple[int, int]  # tokens, width
    extra: dict = field(default_factory=dict)  # other conditioning: a shape becomes a random tensor
    from_file: bool = True  # False where the loader can tell the family by its full width only


UNET = {
    "image_size": 32,
    "use_checkpoint": False,
    "use_spatial_transformer": True,
    "legacy": False,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 320,
    "num_res_blocks": [1],
    "channel_mult": [1],
    "transformer_depth": [1],
    "transformer_depth_output": [0, 0],
    "transformer_depth_middle": -2,
    "use_linear_in_transformer": False,
    "context_dim": 768,
    "adm_in_channels": None,
    "use_temporal_resblock": False,
    "use_temporal_attention": False,
}
SD3 = {
    "in_channels": 16,
    "patch_size": 2,
    "out_channels": 16,
    "depth": 2,
    "input_size": None,
    "adm_in_channels": 64,
    "context_embedder_config": {"target": "torch.nn.Linear", "params": {"in_features": 64, "out_features": 128}},
    "num_patches": 1024,
    "pos_embed_max_size": 32,
    "qk_norm": "rms",
    "pos_embed_scaling_factor": None,
    "x_block_self_attn_layers": [],
}
FLUX = {
    "image_model": "flux",
    "axes_dim": [16, 56, 56],
    "num_heads": 1,
    "mlp_ratio": 4.0,
    "theta": 10000,
    "out_channels": 16,
    "qkv_bias": True,
    "in_channels": 16,
    "hidden_size": 128,
    "context_in_dim": 64,
    "patch_size": 2,
    "vec_in_dim": 64,
    "depth": 1,
    "depth_single_blocks": 1,
    "guidance_embed": True,
}
HUNYUAN_IMAGE = {
    "image_model": "hunyuan_video",
    "in_channels": 64,
    "patch_size": [1, 1],
    "out_channels": 64,
    "vec_in_dim": None,
    "axes_dim": [64, 64],
    "meanflow": False,
    "context_in_dim": 64,
    "hidden_size": 128,
    "mlp_ratio": 4.0,
    "num_heads": 1,
    "depth": 1,
    "depth_single_blocks": 1,
    "theta": 256,
    "qkv_bias": True,
    "byt5": False,
    "guidance_embed": False,
    "use_cond_type_embedding": False,
    "vision_in_dim": None,
}
WAN = {
    "image_model": "wan2.1",
    "dim": 128,
    "out_dim": 16,
    "num_heads": 1,
    "ffn_dim": 256,
    "num_layers": 1,
    "patch_size": (1, 2, 2),
    "freq_dim": 256,
    "window_size": (-1, -1),
    "qk_norm": True,
    "cross_attn_norm": True,
    "eps": 1e-6,
    "in_dim": 16,
    "model_type": "t2v",
}
HUNYUAN_VIDEO = {
    **HUNYUAN_IMAGE,
    "in_channels": 16,
    "out_channels": 16,
    "patch_size": [1, 2, 2],
    "vec_in_dim": 768,
    "axes_dim": [16, 56, 56],
    "guidance_embed": True,
}
LUMINA = {
    "image_model": "lumina2",
    "patch_size": 2,
    "in_channels": 16,
    "dim": 192,
    "cap_feat_dim": 64,
    "n_layers": 1,
    "qk_norm": True,
    "n_heads": 2,
    "n_kv_heads": 1,
    "axes_dims": [32, 32, 32],
    "axes_lens": [300, 512, 512],
    "rope_theta": 10000.0,
    "ffn_dim_multiplier": 1.0,
    "n_refiner_layers": 1,
}
LUMINA_EXTRA = {"attention_mask": torch.ones(1, 8, dtype=torch.int64)}
QWEN = {
    "image_model": "qwen_image",
    "in_channels": 64,
    "num_layers": 1,
    "attention_head_dim": 128,
    "num_attention_heads": 1,
    "joint_attention_dim": 64,
}
CHROMA = {
    **FLUX,
    "image_model": "chroma",
    "in_channels": 64,
    "out_channels": 64,
    "in_dim": 64,
    "hidden_dim": 64,
    "n_layers": 2,
    "out_dim": 128,
    "depth": 1,
}
PIXART = {
    "image_model": "pixart_sigma",
    "num_heads": 16,
    "patch_size": 2,
    "hidden_size": 1152,
    "in_channels": 4,
    "depth": 1,
    "model_max_length": 300,
    "micro_condition": False,
    "input_size": 64,
    "pe_interpolation": 1,
}
TWO_LEVELS = {
    "num_res_blocks": [1, 1],
    "channel_mult": [1, 1],
    "transformer_depth": [1, 1],
    "transformer_depth_output": [1, 0, 1, 0],
    "transformer_depth_middle": 1,
}
SDXL = {**UNET, **TWO_LEVELS, "num_classes": "sequential", "context_dim": 2048, "adm_in_channels": 2816}

FAMILIES = {
    "sd3": Family("SD3", SD3, (16, 16, 16), (8, 64), {"pooled_output": (1, 64)}),
    "sd15": Family("SD15", UNET, (4, 16, 16), (77, 768)),
    "wan": Family("WAN21_T2V", WAN, (16, 2, 16, 16), (8, 4096)),
    "hunyuan_image": Family("HunyuanImage21", HUNYUAN_IMAGE, (64, 8, 8), (8, 64)),
    "flux": Family("Flux", FLUX, (16, 16, 16), (8, 64), {"pooled_output": (1, 64), "guidance": 3.5}, from_file=False),
    "sd15_deep": Family("SD15", {**UNET, **TWO_LEVELS}, (4, 16, 16), (77, 768)),
    "sdxl": Family("SDXL", SDXL, (4, 16, 16), (77, 2048), {"pooled_output": (1, 1280)}, from_file=False),
    "hunyuan_video": Family(
        "HunyuanVideo", HUNYUAN_VIDEO, (16, 2, 16, 16), (8, 64), {"pooled_output": (1, 768), "guidance": 6.0}
    ),
    "lumina2": Family("Lumina2", LUMINA, (16, 16, 16), (8, 64), LUMINA_EXTRA, from_file=False),
    "z_image": Family(
        "Lumina2", {**LUMINA, "pad_tokens_multiple": 32}, (16, 16, 16), (8, 64), LUMINA_EXTRA, from_file=False
    ),
    "qwen": Family("QwenImage", QWEN, (16, 1, 16, 16), (8, 64), from_file=False),
    "chroma": Family("Chroma", CHROMA, (16, 16, 16), (8, 64), {"pooled_output": (1, 64)}, from_file=False),
    "pixart": Family("PixArtSigma", PIXART, (4, 40, 40), (8, 4096)),
}
# The UNet with its sampling switched by ComfyUI's own node.
V_PREDICTION = "sd15_v"


class Tiny:
    """Loads each family once; `model(family)` is a fresh clone."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._loaded: dict[str, Any] = {}

    def model(self, family: str) -> Any:
        if family not in self._loaded:
            self._loaded[family] = self._load(family)
        return self._loaded[family].clone()

    def conditioning(self, family: str, seed: int = 1) -> tuple[list, list]:
        """positive and negative, as text encoders give them."""
        chosen = FAMILIES[family.removesuffix("_v")]
        generator = torch.Generator().manual_seed(seed)

        def one() -> list:
            extra = {
                name: torch.randn(value, generator=generator) if isinstance(value, tuple) else value
                for name, value in chosen.extra.items()
            }
            return [[torch.randn(1, *chosen.context, generator=generator), extra]]

        return one(), one()

    def latent(self, family: str, batch: int = 1, grow: int = 0) -> Tensor:
        *head, height, width = FAMILIES[family.removesuffix("_v")].latent
        return torch.zeros(batch, *head, height + grow, width)

    def sample(
        self,
        model: Any,
        family: str,
        *,
        latent: Tensor | None = None,
        noise: Tensor | None = None,
        steps: int = 3,
        cfg: float = 3.0,
        sampler: str = "euler",
        scheduler: str = "simple",
        seed: int = 0,
        **options: Any,
    ) -> Tensor:
        """What the KSampler node does."""
        positive, negative = self.conditioning(family)
        latent = self.latent(family) if latent is None else latent
        noise = comfy.sample.prepare_noise(latent, seed) if noise is None else noise
        return comfy.sample.sample(
            model,
            noise,
            steps,
            cfg,
            sampler,
            scheduler,
            positive,
            negative,
            latent,
            disable_pbar=True,
            seed=seed,
            **options,
        )

    def twin(self, family: str, weights: torch.dtype) -> Any:
        """The same network with its weights rounded to another type, as the loader's weight_dtype does."""
        return _patcher(_build(FAMILIES[family], weights))

    def quantized(self, family: str, **options: Any) -> Any:
        """A clone as `model` gives it that computes as if it were quantized to W4A4."""
        from gimbal.nodes.simulate_quantization import GimbalSimulateQuantization

        bits = {"preset": "W4A4", "weight_bits": "by preset", "activation_bits": "by preset"}
        details = {"group_size": 64, "rank": 0, "layers": "blocks"}
        return GimbalSimulateQuantization.execute(self.model(family), **{**bits, **details, **options}).args[0]

    def _load(self, family: str) -> Any:
        if family == V_PREDICTION:
            from comfy_extras.nodes_model_advanced import ModelSamplingDiscrete

            return ModelSamplingDiscrete().patch(self.model("sd15"), "v_prediction", False)[0]
        chosen = FAMILIES[family]
        if not chosen.from_file:
            return _patcher(_build(chosen))
        path = self.folder / f"{family}.safetensors"
        weights = _build(chosen).diffusion_model.state_dict()
        save_file({name: value.contiguous().clone() for name, value in weights.items()}, path)
        return comfy.sd.load_diffusion_model(str(path))


def _patcher(model: Any) -> Any:
    patcher = getattr(comfy.model_patcher, "CoreModelPatcher", comfy.model_patcher.ModelPatcher)
    return patcher(
        model,
        load_device=comfy.model_management.get_torch_device(),
        offload_device=comfy.model_management.unet_offload_device(),
    )


def _build(family: Family, weights: torch.dtype = torch.float32) -> Any:
    config = _fit(family.model, family.config)
    model_config = getattr(comfy.supported_models, family.model)(config)
    model_config.set_inference_dtype(weights, None if weights == torch.float32 else torch.float32)
    model = model_config.get_model({}, "")
    _randomise(model.diffusion_model)
    return model


def _fit(model: str, config: dict) -> dict:
    """Drop or fill the fields that came and went between ComfyUI's versions; the weights are the same."""
    if model == "Lumina2":
        from comfy.ldm.lumina.model import NextDiT

        known = inspect.signature(NextDiT.__init__).parameters
        if "pad_tokens_multiple" in config and "pad_tokens_multiple" not in known:
            pytest.skip("this ComfyUI has no Z-Image yet")
        return {name: value for name, value in config.items() if name in known or name == "image_model"}
    fields = _parameter_fields(model)
    if fields is None:
        return dict(config)
    fitted = {name: value for name, value in config.items() if name in fields}
    missing = dataclasses.MISSING
    for name, entry in fields.items():
        if name not in fitted and entry.default is missing and entry.default_factory is missing:
            fitted[name] = {"txt_ids_dims": [], "meanflow_sum": False, "use_x0": False}.get(name)
    return {**fitted, "image_model": config["image_model"]}


def _parameter_fields(model: str) -> dict | None:
    if model == "Flux":
        from comfy.ldm.flux.model import FluxParams as Parameters
    elif model == "Chroma":
        from comfy.ldm.chroma.model import ChromaParams as Parameters
    elif model.startswith("Hunyuan"):
        from comfy.ldm.hunyuan_video.model import HunyuanVideoParams as Parameters
    else:
        return None
    return {entry.name: entry for entry in dataclasses.fields(Parameters)}


def _randomise(network: nn.Module) -> None:
    """About unit gain everywhere. ComfyUI leaves weights unset, so every tensor must be written."""
    generator = torch.Generator().manual_seed(0)

    def normal(scale: float) -> Callable[[Tensor], Tensor]:
        return lambda like: torch.randn(like.shape, generator=generator) * scale

    for name, value in network.state_dict().items():
        last = name.rsplit(".", 1)[-1]
        if not value.is_floating_point():
            continue
        if value.ndim >= 2 and "pos_embed" not in name and last != "modulation":
            value.copy_(normal(value[0].numel() ** -0.5)(value))
        elif last == "bias":
            value.copy_(normal(0.02)(value))
        elif last in ("weight", "scale", "gamma"):
            value.copy_(1 + normal(0.05)(value))
        else:
            value.copy_(normal(0.2)(value))


def statistics(model: Any, spread: float = 0.45, **changes: Any) -> Any:
    """Q-Drift statistics of an error of this spread, different in each channel, and maps; `changes` to its provenance."""
    from gimbal.calibration.moments import JointMoments
    from gimbal.calibration.provenance import Provenance
    from gimbal.calibration.statistics import QDriftStatistics
    from gimbal.host.model_kind import latent_format, path_of

    channels = model.model.latent_format.latent_channels
    generator = torch.Generator().manual_seed(0)
    sigmas, path = [10.0, 1.0, 0.1], path_of("test", model)
    sigmas = sigmas if path == "ve" else [1.0, 0.5, 0.1]
    runs = []
    for _ in sigmas:
        moments = JointMoments(channels)
        eps_hat = torch.randn(1, channels, 16, 16, generator=generator)
        spreads = spread * torch.linspace(0.7, 1.3, channels).view(1, -1, 1, 1)
        moments.update(eps_hat, 0.1 * eps_hat + spreads * torch.randn(eps_hat.shape, generator=generator))
        runs.append(moments)
    about = {"path": path, "latent_channels": channels, "latent_format": latent_format(model)}
    about |= {"cfg": 3.0, "steps": 3, "runs": 1, "seeds": (0,)}
    ends = [*sigmas[1:], 0.0]
    maps = [
        (1 + 0.05 * torch.rand(3, channels, generator=generator), torch.full((3, channels), 0.05)) for _ in range(2)
    ]
    return QDriftStatistics.from_runs(sigmas, [runs], Provenance(**{**about, **changes}), (ends, *maps[0]), maps[1])


def layer_statistics(model: Any) -> Any:
    """`statistics` with offsets at the linear layers that write to the residual stream."""
    from gimbal.core import places
    from gimbal.core.layer_correction import LayerOffsets

    network = model.model.diffusion_model
    found = [
        places.Place(name, 0, network.get_submodule(name).out_features, -1)
        for name in places.names(network, "residual")
        if "emb_layers" not in name  # gives no positions
    ]
    width = sum(place.channels for place in found)
    offset = 0.2 * torch.randn(2, width, generator=torch.Generator().manual_seed(0))
    ends = torch.tensor([0.5, 0.0], dtype=torch.float64)
    layers = LayerOffsets(tuple(found), ends, offset.bfloat16())
    return dataclasses.replace(statistics(model), layers=layers)
