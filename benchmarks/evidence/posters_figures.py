"""The contact sheet of the section on larger canvases."""

from __future__ import annotations

from pathlib import Path

from torch.nn import functional as F

from gimbal_demo.sheet import contact_sheet

from . import posters as p
from . import quantization as q
from .figures import as_images, save

COLUMNS = 5
SHOWN = (q.PLAIN, q.MOMENTS, q.BANDS)


def sheet(models: q.Models, path: Path) -> None:
    """Full precision, quantized, corrected: the first posters of seed 0."""
    setting = p.SETTINGS[p.LARGE]
    trial = q.Trial(models, setting, p.FORM, COLUMNS, 0)
    bands = {q.FULL: trial.sample(full=True)}
    bands |= {f"{p.FORM.name} | {method}": q.METHODS[method](None, trial) for method in SHOWN}
    title = f"Poster model, latents of {setting.size}: the first {COLUMNS} posters of seed 0 in every row"
    pictures = [F.avg_pool2d(as_images(each).movedim(-1, 1), 2).movedim(1, -1) for each in bands.values()]
    save(contact_sheet(pictures, list(bands), title, COLUMNS), path)
