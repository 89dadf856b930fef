"""Pictures and workflows of one's own checkpoints: the measures, against others' and by hand, and where a prompt goes."""

import importlib.util
import json
import math
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from devkit.paths import Stop

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"


def package(name):
    if name not in sys.modules:
        folder = BENCHMARKS / name
        spec = importlib.util.spec_from_file_location(
            name, folder / "__init__.py", submodule_search_locations=[str(folder)]
        )
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])


for name in ("evidence", "checkpoints"):
    package(name)
from checkpoints import graphs, learned, measures, report  # noqa: E402
from checkpoints.values import Measurements  # noqa: E402


def pictures(seed, *shape):
    return torch.rand(shape or (3, 3, 40, 33), generator=torch.Generator().manual_seed(seed))


def test_distances_of_known_pictures():
    flat, dark = torch.full((2, 3, 16, 16), 0.6), torch.full((2, 3, 16, 16), 0.5)
    found = measures.of_pair(flat, dark)
    assert found["mse"] == pytest.approx(0.01) and found["psnr"] == pytest.approx(20.0, abs=1e-4)
    assert found["contrast_off"] == found["saturation_off"] == 0.0
    # Flat pictures have no structure: what is left of SSIM is (2ab + c1) / (a^2 + b^2 + c1).
    assert found["ssim"] == pytest.approx((0.6 + 1e-4) / (0.61 + 1e-4), abs=1e-4)
    same = measures.of_pair(flat, flat)
    assert same["psnr"] == measures.MOST_DB and same["ssim"] == pytest.approx(1.0)


def test_contrast_and_saturation_by_hand():
    halves = torch.zeros(1, 3, 12, 12)
    halves[:, :, :6] = 1.0  # white over black
    assert measures.of_one(halves) == {"contrast": pytest.approx(0.5), "saturation": 0.0}
    red = torch.zeros(1, 3, 12, 12)
    red[:, 0] = 0.8
    assert measures.of_one(red) == {"contrast": pytest.approx(0.0, abs=1e-6), "saturation": pytest.approx(0.8)}


def test_ssim_is_torchmetrics_own():
    image = pytest.importorskip("torchmetrics.functional.image", reason="torchmetrics is not installed")
    a = pictures(0)
    b = (a + 0.1 * pictures(1)).clamp(0, 1)
    # Theirs goes on over the edges, into a reflection of the picture; ours keeps to whole windows.
    _, places = image.structural_similarity_index_measure(a, b, data_range=1.0, return_full_image=True)
    edge = measures.WINDOW // 2
    theirs = places[..., edge:-edge, edge:-edge].flatten(1).mean(1)
    assert torch.allclose(measures.ssim(a, b).float(), theirs, atol=1e-5)


def test_pictures_that_cannot_be_paired_are_refused():
    with pytest.raises(ValueError, match="let both workflows make the same number of pictures of the same size"):
        measures.of_pair(pictures(0), pictures(0, 2, 3, 40, 33))
    with pytest.raises(ValueError, match="SSIM needs pictures of 11 pixels or more a side"):
        measures.of_pair(pictures(0, 1, 3, 8, 8), pictures(1, 1, 3, 8, 8))


class Means(nn.Module):
    """A picture's mean colours, as features for FID."""

    num_features = 3

    def forward(self, pictures):
        return pictures.float().mean((2, 3)) / 255


def test_fid_by_a_network_of_ones_own():
    pytest.importorskip("torchmetrics", reason="torchmetrics is not installed")
    from evidence import metrics

    fid = learned.Fid(Means())
    ours, real = [pictures(i, 4, 3, 12, 12) for i in range(3)], [pictures(9, 15, 3, 12, 12) * 0.5]
    features = [Means()((torch.cat(each) * 255).round()) for each in (ours, real)]
    expected = metrics.frechet(*(metrics.Gaussian.of(each) for each in features))
    assert fid(ours, real) == pytest.approx(expected, rel=1e-3) and expected > 0.1
    assert fid(ours, ours) == pytest.approx(0.0, abs=1e-4), "nothing is left of the sets before"
    with pytest.raises(ValueError, match="two pictures or more on each side, got 1 and 15"):
        fid([pictures(0, 1, 3, 12, 12)], real)


def test_prompts_are_the_units_and_words_follow_the_direction():
    values = Measurements(3, 2)
    values.found = {
        "plain": {"psnr": [[20.0, 22.0], [30.0, 30.0], [25.0, 25.0]], "mse": [[2.0, 2.0], [3.0, 3.0], [4.0, 4.0]]},
        "ours": {"psnr": [[22.0, 22.0], [31.1, 30.9], [25.9, 26.1]], "mse": [[1.0, 1.0], [2.1, 2.1], [2.9, 2.9]]},
    }
    assert values.units("plain", "psnr") == [21.0, 30.0, 25.0]
    change = values.change("ours", "plain", "psnr")
    assert change.n == 3 and change.mean == pytest.approx(1.0) and change.error == pytest.approx(0.0, abs=1e-9)
    assert values.word("ours", "plain", "psnr") == values.word("ours", "plain", "mse") == "better"
    assert values.word("plain", "ours", "psnr") == values.word("plain", "ours", "mse") == "worse"
    values.found["plain"]["contrast"] = [[1.0, 1.0], [2.0, 2.0], [3.0, 3.0]]
    values.found["ours"]["contrast"] = [[1.5, 1.5], [2.6, 2.6], [3.4, 3.4]]
    assert values.word("ours", "plain", "contrast") == "higher" and values.word("plain", "ours", "contrast") == "lower"
    assert values.word("plain", "plain", "psnr") == "no difference"
    one = Measurements(1, 3, {"plain": {"mse": [[1.0, 2.0, 3.0]]}})
    assert one.units("plain", "mse") == [1.0, 2.0, 3.0] and one.mean("plain", "mse").mean == 2.0
    text = report.text(values, None, "plain", ["a workflow"], ["FID is not to be had"])
    assert "| ours | PSNR, dB | +1.00" in text and "better" in text and "- Not measured: FID" in text
    assert not math.isnan(values.mean("ours", "mse").error)


def text(words):
    return {"class_type": "CLIPTextEncode", "inputs": {"text": words, "clip": ["clip", 0]}}


def sampler(**inputs):
    return {"class_type": "KSampler", "inputs": {"seed": 1, "model": ["model", 0], **inputs}}


def saver(name, images):
    return {"class_type": "SaveImage", "inputs": {"images": [images, 0], "filename_prefix": f"some/{name}"}}


WORKFLOW = {
    "clip": {"class_type": "CLIPLoader", "inputs": {"clip_name": "t5.safetensors", "type": "flux"}},
    "model": {"class_type": "UNETLoader", "inputs": {"unet_name": "a.safetensors"}},
    "good": text("a castle"),
    "bad": text("blurry"),
    # Takes both prompts and hands both on, as ControlNet's nodes do.
    "both": {"class_type": "ControlNetApplyAdvanced", "inputs": {"positive": ["good", 0], "negative": ["bad", 0]}},
    "plain": sampler(positive=["both", 0], negative=["both", 1]),
    "other": sampler(positive=["both", 0], negative=["both", 1], steps=4),
    "1": saver("plain", "plain"),
    "2": saver("other", "other"),
}


@pytest.fixture
def load(tmp_path):
    def load(workflow, *given):
        (tmp_path / "flow.json").write_text(json.dumps(workflow))
        return graphs.load(tmp_path / "flow.json", {}, *given)

    return load


def test_prompt_and_seed_go_where_they_belong(load):
    made = load(WORKFLOW).filled("a lake", 7)
    assert made["good"]["inputs"]["text"] == "a lake" and made["bad"]["inputs"]["text"] == "blurry"
    assert made["clip"] == WORKFLOW["clip"] and made["model"] == WORKFLOW["model"]
    assert made["plain"]["inputs"]["seed"] == made["other"]["inputs"]["seed"] == 7
    marked = {**WORKFLOW, "good": text("photo of %prompt%, sharp")}
    assert load(marked).filled("a lake", 7)["good"]["inputs"]["text"] == "photo of a lake, sharp"
    guider = {
        "clip": WORKFLOW["clip"],
        "good": text("a castle"),
        "guider": {"class_type": "BasicGuider", "inputs": {"conditioning": ["good", 0]}},
        "noise": {"class_type": "RandomNoise", "inputs": {"noise_seed": 3}},
        "plain": {"class_type": "SamplerCustomAdvanced", "inputs": {"guider": ["guider", 0], "noise": ["noise", 0]}},
        "1": saver("plain", "plain"),
    }
    made = load(guider).filled("a lake", 7)
    assert made["good"]["inputs"]["text"] == "a lake" and made["noise"]["inputs"]["noise_seed"] == 7


def test_variants_are_named_by_what_saves_them(load):
    found = load(WORKFLOW)
    assert found.variants == {"plain": "1", "other": "2"}
    assert found.workflow["1"] == {"class_type": "PreviewImage", "inputs": {"images": ["plain", 0]}}
    assert load(WORKFLOW, "flux").variants == {"flux-plain": "1", "flux-other": "2"}
    one = load(WORKFLOW, "", frozenset({"other"}))
    assert one.variants == {"other": "2"} and "plain" not in one.workflow and "both" in one.workflow
    alone = {name: entry for name, entry in WORKFLOW.items() if name != "2"}
    assert load(alone, "flux").variants == {"flux": "1"}


def test_workflows_that_do_not_fit_are_refused(load):
    with pytest.raises(Stop, match="saves no picture; put a Save Image node"):
        load({name: WORKFLOW[name] for name in ("clip", "good")})
    with pytest.raises(Stop, match="saves two pictures under one name"):
        load({**WORKFLOW, "2": saver("plain", "other")})
    with pytest.raises(Stop, match="write %prompt% where the prompt belongs"):
        load({**WORKFLOW, "good": {"class_type": "LoadConditioning", "inputs": {"file": "x"}}})
