"""What people see of a correction on the poster model's pictures: colour, composition, grain. Rows."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from gimbal.calibration.measures import Measures, measured

from . import posters
from .model import decode_unclipped
from .quantization import LAYERS, LAYERS_AND_MOMENTS, METHODS, MOMENTS, PLAIN, Bench, QuantizedRow

PART = f"halves-{posters.KIND}"
SETTING, FORM = posters.SETTINGS[posters.SMALL], posters.FORM
SHOWN = (PLAIN, MOMENTS, LAYERS, LAYERS_AND_MOMENTS)


def rows(kind: str) -> Iterator[QuantizedRow]:
    for method in SHOWN:
        yield QuantizedRow(SETTING, FORM, method, METHODS[method])


def measures(bench: Bench, row: QuantizedRow) -> dict[str, float]:
    """Means over the row's posters."""
    latents = row.make(bench, bench.sampler(row.setting, row.form))
    found = of_posters(latents, bench.reference(row.setting, row.form)[0])
    means = {key: float(getattr(found, key).mean()) for key in Measures._fields}
    return means | {"grain_off": float(found.grain.abs().mean())}


def of_posters(latents: Tensor, full: Tensor) -> Measures:
    """The trial's measures (METHODS 4.4) of each poster."""
    return measured(latents, full, decode_unclipped)
