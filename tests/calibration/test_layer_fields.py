"""The layer correction in a statistics file: what is written comes back, half of it or another's is refused."""

import dataclasses
import json

import pytest
import torch

from gimbal.calibration.moments import JointMoments
from gimbal.calibration.provenance import Provenance
from gimbal.calibration.statistics import QDriftStatistics
from gimbal.calibration.storage import opened
from gimbal.calibration.trial import Trial
from gimbal.core.layer_correction import LayerOffsets
from gimbal.core.places import Place

PLACES = Place("blocks.0.attn.out", 0, 3, -1), Place("blocks.0", 1, 2, 1)
ABOUT = {"path": "flow", "latent_channels": 2, "latent_format": "SD3", "cfg": 3.0, "steps": 2, "runs": 1}


def layers(dtype=torch.bfloat16):
    offset = torch.randn(2, 5, generator=torch.Generator().manual_seed(0))
    return LayerOffsets(PLACES, torch.tensor([0.5, 0.0], dtype=torch.float64), offset.to(dtype))


def statistics(seed=0, **changes):
    generator = torch.Generator().manual_seed(seed)
    run = []
    for _ in range(2):
        run.append(JointMoments(2))
        run[-1].update(*torch.randn(2, 1, 2, 4, 4, generator=generator))
    maps = [1.0, 0.0], torch.ones(2, 2), torch.zeros(2, 2)
    found = QDriftStatistics.from_runs([2.0, 1.0], [run], Provenance(**ABOUT, seeds=(seed,)), maps)
    return dataclasses.replace(found, **changes)


def whole():
    scale, shift = torch.full((2, 2), 1.5), torch.full((2, 2), 0.25)
    tried = Trial(
        (("plain", 0.0), ("layers", 1.0), ("layers and moments", 1.0)), ((0.3,), (0.2,), (0.1,)), ((0.1,),) * 3
    )
    return statistics(layers=layers(), state_scale_layers=scale, state_shift_layers=shift, trial=tried)


def test_it_survives_a_file(tmp_path):
    found = whole()
    found.save(tmp_path / "a.safetensors")
    with opened(tmp_path / "a.safetensors") as file:
        assert file.layout["layer_sigma_end"] == ("F64", (2,)) and file.layout["layer_offset"] == ("BF16", (2, 5))
        assert json.loads(file.metadata["layer_places"]) == [["blocks.0.attn.out", 0, 3, -1], ["blocks.0", 1, 2, 1]]
    back = QDriftStatistics.load(tmp_path / "a.safetensors")
    assert back.layers.places == PLACES and torch.equal(back.layers.sigma_end, found.layers.sigma_end)
    assert back.layers.offset.dtype == torch.bfloat16 and torch.equal(back.layers.offset, found.layers.offset)
    assert torch.equal(back.state_map("layers").scale, found.state_scale_layers)
    assert torch.equal(back.state_map().scale, found.state_scale) and back.state_map("drift") is None
    assert back.trial.advice().correction == "layers and moments"
    assert "layer correction at 2 places, 2 ranges of sigma" in back.describe()


def test_wider_offsets_are_rounded_once(tmp_path):
    statistics(layers=layers(torch.float32)).save(tmp_path / "a.safetensors")
    assert torch.equal(QDriftStatistics.load(tmp_path / "a.safetensors").layers.offset, layers().offset)


def test_files_without_it_load_as_before(tmp_path):
    statistics().save(tmp_path / "a.safetensors")
    back = QDriftStatistics.load(tmp_path / "a.safetensors")
    assert back.layers is None and back.state_map("layers") is None and "without layer correction" in back.describe()


def forged(path, change):
    """The file with its layer fields changed."""
    from gimbal.calibration import files

    tensors, metadata = files.read(path)
    metadata = {name: text for name, text in metadata.items() if not name.startswith("checksum")}
    change(tensors, metadata)
    files.write(path, tensors, metadata)


def places(text):
    return lambda tensors, metadata: metadata.update(layer_places=text)


def part(name, change):
    return lambda tensors, metadata: tensors.update({name: change(tensors[name])})


def lacking(*names):
    return lambda tensors, metadata: [tensors.pop(name, metadata.pop(name, None)) for name in names]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lacking("layer_offset"), "layer_offset is missing beside layer_sigma_end"),
        (lambda tensors, metadata: metadata.pop("layer_places"), "of its three parts the file has"),
        (
            lacking("layer_offset", "layer_sigma_end"),
            "layer_sigma_end, layer_offset is missing beside state_scale_layers",
        ),
        (part("layer_offset", torch.Tensor.float), "layer_offset has dtype F32 instead of BF16"),
        (part("layer_offset", lambda t: t[:1]), "should have 2"),
        (part("layer_offset", lambda t: t * float("inf")), "layer_offset holds NaN or infinity"),
        (part("layer_sigma_end", lambda t: t.flip(0)), "levels that fall strictly, to 0"),
        (places('[["a", 0, 5, 0]]'), "axis -1 or 1"),
        (places('[["a", 0, 4, 1]]'), r"need \(2, 4\) floats"),
        (places('[["a", 0, 2, 1], ["a", 0, 3, 1]]'), "none may be missing or twice"),
        (places('[["a\\n", 0, 5, 1]]'), "names .* which is no module"),
        (places('[["", 0, 5, 1]]'), "which is no module"),
        (places('[["a", 0, Infinity, 1]]'), "cannot be read"),
        (places("[" * 50_000), "cannot be read"),
    ],
)
def test_what_cannot_be_is_refused_with_the_file_and_a_remedy(tmp_path, change, message):
    path = tmp_path / "a.safetensors"
    whole().save(path)
    forged(path, change)
    with pytest.raises(ValueError, match=rf"a\.safetensors: .*{message}.*calibrate again"):
        QDriftStatistics.load(path)


def test_merging_takes_the_mean_by_runs():
    """Of the offsets; maps and candidates that need them are left out."""
    two = dataclasses.replace(whole(), layers=dataclasses.replace(layers(), offset=-layers().offset))
    two = dataclasses.replace(two, provenance=Provenance(**{**ABOUT, "runs": 3}, seeds=(1, 2, 3)), run_variance=None)
    merged = QDriftStatistics.merge([whole(), two])
    assert merged.provenance.runs == 4 and merged.state_map("layers") is None
    wanted = (1 * layers().offset.double() - 3 * layers().offset.double()) / 4
    assert merged.layers.places == PLACES and torch.equal(merged.layers.offset, wanted.bfloat16())
    assert merged.trial.candidates == (("plain", 0.0), ("layers", 1.0)) and merged.trial.error == (
        (0.3,) * 2,
        (0.2,) * 2,
    )
    assert merged.trial.advice().correction == "layers"


def test_merging_leaves_out_what_does_not_fit():
    ends = torch.tensor([0.4, 0.0], dtype=torch.float64)
    moved = Place("blocks.1.attn.out", 0, 3, -1), PLACES[1]
    others = [None, *(dataclasses.replace(layers(), **change) for change in ({"sigma_end": ends}, {"places": moved}))]
    for other in others:
        two = statistics(1, layers=other)
        for parts in ([whole(), two], [two, whole()]):
            merged = QDriftStatistics.merge(parts)
            assert merged.provenance.runs == 2 and merged.layers is None and merged.trial is None
