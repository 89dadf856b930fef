"""Files in ComfyUI's own quantized formats, as its loader makes a network of them and its kernels compute it on the CPU."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from . import subjects
from .formats import NumberFormat
from .model import ROOT
from .quantization import ADVISED, FULL, LAYERS, LAYERS_AND_MOMENTS, METHODS, MOMENTS, PLAIN, QuantizedRow

sys.path.insert(0, str(ROOT))
from devkit.quantized import formats as files

FOLDER = ROOT / ".dev" / "evidence" / "formats"
KIND = "flow"
PART = f"formats-{KIND}"
SETTING = subjects.SETTINGS[KIND][0]
SEEDS = 4
CORRECTED = (MOMENTS, LAYERS, LAYERS_AND_MOMENTS, ADVISED)


@dataclass(frozen=True)
class FileKind:
    """A format of `dev.py quantize`. algorithm: its name in ComfyUI. rounding: ComfyUI on the CPU computes with activations
    in full precision, and they are rounded here, by the format's own quantizer, as its products on a GPU round them."""

    file: str
    algorithm: str
    rounding: bool = False


FILES = {
    "nvfp4": FileKind("nvfp4", "nvfp4"),
    "nvfp4, activations too": FileKind("nvfp4", "nvfp4", rounding=True),
    "mxfp8, activations too": FileKind("mxfp8", "mxfp8", rounding=True),
    "int8": FileKind("int8", "int8_tensorwise"),
    "convrot W4A4": FileKind("convrot_w4a4", "convrot_w4a4"),
    "asym W4A8": FileKind("asym_w4a8", "asym_w4a8_int8"),
}


def loaded(kind: FileKind, network: nn.Module) -> nn.Module:
    """The flow model's file in this format, written and loaded. network: the same model in full precision, not used.

    ValueError where this ComfyUI does not read the format.
    """
    check(kind)
    import comfy.sd

    path = FOLDER / f"{kind.file}{files.suffix(kind.file)}"
    files.make(subjects.weights(KIND), kind.file, path)
    model = comfy.sd.load_diffusion_model(str(path), model_options={"dtype": torch.float32})
    quantized = model.model.diffusion_model.eval().requires_grad_(False)
    layers = [each for each in quantized.modules() if getattr(each, "quant_format", None) == kind.algorithm]
    if not layers:
        raise ValueError(f"{path}: ComfyUI's loader made no layer of {kind.algorithm}.")
    if kind.rounding:
        for each in layers:
            each.register_forward_pre_hook(_round_input)
    return quantized


def check(kind: FileKind) -> None:
    import comfyui_version

    try:
        from comfy.quant_ops import QUANT_ALGOS
    except ImportError:
        QUANT_ALGOS = {}
    if kind.algorithm not in QUANT_ALGOS:
        raise ValueError(
            f"the part {PART} needs a ComfyUI that reads {kind.algorithm}; {comfyui_version.__version__} does not. Run "
            f"`python dev.py bench evidence --full --part={PART} --comfyui=FOLDER` with 0.33.0 or newer and its requirements "
            "installed. The stored rows are reported all the same."
        )


def _round_input(layer: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """As the layer's own forward does before a product of two quantized matrices."""
    from comfy.quant_ops import QuantizedTensor

    x, *others = inputs
    rows = QuantizedTensor.from_float(x.reshape(-1, x.shape[-1]), layer.layout_type, scale=None)
    return rows.dequantize().reshape(x.shape), *others


FORMATS = tuple(NumberFormat(name, partial(loaded, kind), exact=True) for name, kind in FILES.items())


def rows(kind: str) -> Iterator[QuantizedRow]:
    yield QuantizedRow(SETTING, FORMATS[0], FULL, METHODS[FULL])
    for form in FORMATS:
        for method in (PLAIN, *CORRECTED):
            yield QuantizedRow(SETTING, form, method, METHODS[method])
