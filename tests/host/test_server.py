"""The pack as people use it: a server, its HTTP API, workflows run to pictures."""

import copy
import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
BANDS_TOP, BAND_GAP, MARGIN = 80, 20, 24  # as demo/gimbal_demo/sheet.py lays them out
DEMO = ROOT / "demo" / "workflows" / "micrograin.json"


@pytest.fixture(scope="module")
def ours(server):
    info = server.get("/object_info")
    return {name: entry for name, entry in info.items() if entry["python_module"].endswith("custom_nodes.gimbal")}


@pytest.fixture
def demo(server):
    from devkit import graph

    return graph.to_api(json.loads(DEMO.read_text(encoding="utf-8")), server.get("/object_info"))


@pytest.fixture
def run(server):
    from devkit import client

    def run(workflow):
        """-> pictures as uint8 arrays, and the ids of the nodes that ran."""
        result = client.run(server.url, workflow)
        entries = [entry for node in result.outputs for entry in result.images(node)]
        pictures = [np.asarray(Image.open(io.BytesIO(client.image(server.url, entry)))) for entry in entries]
        return pictures, result.executed

    return run


def one_letter(**options):
    """The smallest graph with our node in it."""
    return {
        "1": {
            "class_type": "UNETLoader",
            "inputs": {"unet_name": "gimbal_letters_fp16.safetensors", "weight_dtype": "default"},
        },
        "2": {"class_type": "GimbalDemoLetters", "inputs": {"text": "G", "rows": 1}},
        "3": {
            "class_type": "GimbalMicrograin",
            "inputs": {
                "model": ["1", 0],
                "form": "hard",
                "q_low": 0.01,
                "q_high": 0.99,
                "strength": 1.0,
                "start_percent": 0.0,
                "end_percent": 1.0,
                "knee": 0.8,
                "alpha": 2.0,
                **options,
            },
        },
        "4": {
            "class_type": "KSampler",
            "inputs": {
                "model": ["3", 0],
                "seed": 1,
                "steps": 4,
                "cfg": 6.0,
                "sampler_name": "euler",
                "scheduler": "simple",
                "positive": ["2", 0],
                "negative": ["2", 1],
                "latent_image": ["2", 2],
                "denoise": 1.0,
            },
        },
        "5": {"class_type": "GimbalDemoDecode", "inputs": {"latent": ["4", 0]}},
        "6": {"class_type": "SaveImage", "inputs": {"images": ["5", 0], "filename_prefix": "one"}},
    }


def with_seed(workflow, seed):
    changed = copy.deepcopy(workflow)
    changed["4"]["inputs"]["seed"] = seed
    return changed


def test_nodes_are_registered_and_explain_themselves(ours):
    assert set(ours) == {
        "GimbalDemoLetters",
        "GimbalDemoDecode",
        "GimbalDemoSheet",
        "GimbalMicrograin",
        "GimbalMicrograinLatent",
        "GimbalAQClip",
        "GimbalAQClipLatent",
        "GimbalConfidence",
        "GimbalConfidencePreview",
        "GimbalEqualStrength",
        "GimbalSAMG",
        "GimbalGuidancePreview",
        "GimbalPrecisionPlan",
        "GimbalQDrift",
        "GimbalQDriftCalibrate",
        "GimbalQDriftCalibrateFrom",
        "GimbalQDriftLoad",
        "GimbalQDriftMerge",
        "GimbalQDriftRecord",
        "GimbalQDriftReport",
        "GimbalQDriftSampler",
        "GimbalSimulateQuantization",
        "GimbalStabilise",
    }
    for name, entry in ours.items():
        assert entry["description"] and entry["category"].startswith("gimbal/"), name
        inputs = {**entry["input"].get("required", {}), **entry["input"].get("optional", {})}
        for label, (kind, *rest) in inputs.items():
            if kind not in ("MODEL", "LATENT"):
                assert rest and rest[0].get("tooltip"), f"{name}.{label} has no tooltip"


def test_the_template_browser_lists_every_workflow(server):
    listed = server.get("/workflow_templates")["gimbal"]
    assert sorted(listed) == sorted(path.stem for path in (ROOT / "workflows").glob("*.json"))


def test_start_up_is_quiet(server):
    about_us = [line for line in server.log_lines() if "gimbal" in line.lower()]
    assert not [line for line in about_us if "warn" in line.lower() or "error" in line.lower()], about_us
    timing = [line for line in about_us if line.strip().endswith("custom_nodes/gimbal")]
    assert timing and "IMPORT FAILED" not in timing[0]


def test_demo_workflow_makes_its_contact_sheet(run, demo, artefacts):
    (sheet,), _ = run(demo)
    Image.fromarray(sheet).save(artefacts / "demo_sheet.png")
    height, width, _ = sheet.shape
    assert width > 10 * 128 and height > 4 * 128
    # Four bands of the same ten pictures at equal distances: the same letters in somewhat other values.
    band = (height - BANDS_TOP + BAND_GAP - MARGIN) // 4
    plain, *stabilised = (sheet[BANDS_TOP + i * band :][: band - BAND_GAP, -1320:].astype(float) for i in range(4))
    for other in stabilised:
        assert 0.1 < np.abs(other - plain).mean() < 20


def test_demo_of_two_passes(run, server, artefacts):
    from devkit import graph

    saved = json.loads((DEMO.parent / "multipass.json").read_text(encoding="utf-8"))
    (sheet,), _ = run(graph.to_api(saved, server.get("/object_info")))
    Image.fromarray(sheet).save(artefacts / "demo_multipass.png")
    band = (sheet.shape[0] - BANDS_TOP + BAND_GAP - MARGIN) // 2
    plain, stabilised = (sheet[BANDS_TOP + i * band :][: band - BAND_GAP, -900:].astype(float) for i in range(2))
    assert 0.1 < np.abs(stabilised - plain).mean() < 40


def test_changing_only_the_seed_and_back(run):
    workflow = one_letter()
    (first,), ran = run(workflow)
    assert ran[-1] == "6"
    (second,), ran = run(with_seed(workflow, 2))
    assert "3" not in ran, "the patched model should have come from ComfyUI's cache"
    (again,), _ = run(with_seed(workflow, 1))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, second)
    # The second picture is what a graph run for the first time gives: another q_low makes ComfyUI build it anew.
    fresh = one_letter(q_low=0.010001)
    (built_anew,), ran = run(with_seed(fresh, 2))
    assert "3" in ran
    assert np.abs(built_anew.astype(int) - second.astype(int)).max() <= 1


def test_interrupt_leaves_nothing_behind(run, server):
    from devkit import client

    (before,), _ = run(one_letter())
    long = with_seed(one_letter(), 11)
    long["4"]["inputs"]["steps"] = 500

    def interrupt(node, done, of):
        if done >= 3:  # newer servers do not report every step
            import urllib.request

            urllib.request.urlopen(urllib.request.Request(f"{server.url}/interrupt", method="POST"), timeout=300)

    with pytest.raises(client.WorkflowFailed, match="interrupted"):
        client.run(server.url, long, interrupt)
    after = one_letter()
    after["6"]["inputs"]["filename_prefix"] = "after"
    after["4"]["inputs"]["steps"] = 5
    run(after)
    after["4"]["inputs"]["steps"] = 4
    (result,), _ = run(after)
    assert np.array_equal(result, before)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"start_percent": 0.8, "end_percent": 0.2}, r"Micrograin \(QSilk\): start_percent \(0.8\) must not be above"),
        ({"form": "soft"}, "form"),
        ({"q_low": 0.7}, "q_low"),
        ({"strength": 2.0}, "strength"),
    ],
)
def test_bad_options_are_refused_in_words(run, options, message):
    from devkit import client

    with pytest.raises(client.WorkflowFailed, match=message):
        run(one_letter(**options))


def test_latent_node_in_a_graph(run):
    workflow = one_letter(strength=0.0)
    (plain,), _ = run(workflow)
    workflow["7"] = {
        "class_type": "GimbalMicrograinLatent",
        "inputs": {
            "latent": ["4", 0],
            "form": "hard",
            "q_low": 0.05,
            "q_high": 0.95,
            "strength": 1.0,
            "knee": 0.8,
            "alpha": 2.0,
        },
    }
    workflow["5"]["inputs"]["latent"] = ["7", 0]
    (clamped,), _ = run(workflow)
    assert clamped.shape == plain.shape and not np.array_equal(clamped, plain)
    workflow["7"]["inputs"]["strength"] = 0.0
    (neutral,), _ = run(workflow)
    assert np.array_equal(neutral, plain)
