"""The formats by name, and the making of a twin."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from safetensors.torch import load_file, save_file

from ..paths import Stop
from . import fp8, kitchen
from .fp8 import Weights
from .layers import all_linears, block_linears

GGUF = "gguf-"  # how the names of GGUF kinds begin
# Beginnings of weights that a whole checkpoint holds beside the diffusion model.
CHECKPOINT = ("model.diffusion_model.", "first_stage_model.", "cond_stage_model.", "conditioner.", "text_encoders.")


@dataclass(frozen=True)
class Format:
    says: str
    write: Callable | None = None  # None: by gguf_file
    group: int = 1  # values of a row that share a scale
    every_linear: bool = False


FORMATS = {
    # Every matrix in these two: ComfyUI 0.3.75 casts those that a scaled file leaves, without a scale, when it loads it.
    "fp8": Format("float8_e4m3fn without scales", fp8.plain, every_linear=True),
    "fp8_scaled": Format("float8_e4m3fn with scale_weight and the scaled_fp8 marker", fp8.scaled, every_linear=True),
    "fp8_mixed": Format("float8_e4m3fn with weight_scale, the layers listed in the header", fp8.mixed),
    "fp8_tagged": Format("float8_e4m3fn with weight_scale, a comfy_quant tensor in each layer", fp8.tagged),
    "nvfp4": Format("4-bit float, groups of 16 (needs comfy-kitchen)", kitchen.nvfp4, 16),
    "mxfp8": Format("8-bit float, groups of 32 (needs comfy-kitchen)", kitchen.mxfp8, 32),
    "int8": Format("8-bit integer, one scale a layer (needs comfy-kitchen)", kitchen.int8),
    "convrot_w4a4": Format("4-bit integer, rotated, groups of 64 (needs comfy-kitchen)", kitchen.w4a4, 64),
    "asym_w4a8": Format("4-bit codes, rotated, for 8-bit activations (needs comfy-kitchen)", kitchen.w4a8, 64),
    "gguf-q8_0": Format("GGUF, 8 bits, groups of 32", None, 32),
    "gguf-q5_0": Format("GGUF, 5 bits, groups of 32", None, 32),
    "gguf-q4_0": Format("GGUF, 4 bits, groups of 32", None, 32),
}


@dataclass(frozen=True)
class Twin:
    path: Path
    quantized: list[str]
    kept: list[str]
    share: float  # of the model's values that are quantized


def suffix(name: str) -> str:
    return ".gguf" if name.startswith(GGUF) else ".safetensors"


def make(source: Path, name: str, output: Path) -> Twin:
    """Write the twin of the diffusion model in `source` in the format `name`. Stop says what cannot be done and why."""
    if name not in FORMATS:
        raise Stop(f"there is no format {name!r}; there are {', '.join(FORMATS)}.")
    if output.suffix != suffix(name):
        raise Stop(f"a file of format {name} ends in {suffix(name)}; {output.name} does not.")
    weights = _read(source)
    made = FORMATS[name]
    chosen = all_linears(weights) if made.every_linear else block_linears(weights, made.group)
    if not chosen:
        raise Stop(f"{source.name} has no linear layer in a numbered block that {name} could hold.")
    output.parent.mkdir(parents=True, exist_ok=True)
    partial_file = output.with_name(f"{output.name}.partial")
    _writer(name)(weights, chosen, partial_file)
    partial_file.replace(output)
    values = {key: weight.numel() for key, weight in weights.items()}
    share = sum(values[key] for key in chosen) / sum(values.values())
    return Twin(output, chosen, [key for key in weights if key not in set(chosen)], share)


def _writer(name: str) -> Callable[[Weights, list[str], Path], None]:
    if name.startswith(GGUF):
        from . import gguf_file

        return partial(gguf_file.write, name.removeprefix(GGUF).upper())
    return partial(_write_safetensors, FORMATS[name].write)


def _write_safetensors(write: Callable, weights: Weights, chosen: list[str], path: Path) -> None:
    tensors, header = write(weights, chosen)
    save_file({key: value.contiguous() for key, value in tensors.items()}, path, metadata=header or None)


def _read(source: Path) -> Weights:
    if source.suffix != ".safetensors" or not source.is_file():
        raise Stop(f"{source} is not a .safetensors file; give a diffusion model in full precision.")
    weights = load_file(source)
    strange = next((key for key in weights if key.startswith(CHECKPOINT)), None)
    if strange:
        raise Stop(
            f"{source.name} is a whole checkpoint ({strange} ...); give the diffusion model's own file, as Load Diffusion "
            "Model reads it. ComfyUI's node ModelSave writes one."
        )
    quantized = next((key for key, value in weights.items() if not value.is_floating_point()), None)
    quantized = quantized or next((key for key, value in weights.items() if value.element_size() == 1), None)
    if quantized:
        raise Stop(
            f"{source.name} is quantized already ({quantized} is {weights[quantized].dtype}); give the original."
        )
    return weights
