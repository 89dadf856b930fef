"""Every bundled workflow, run over HTTP to pictures; only the loaders are swapped for small models of the same family."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

# In the order in which they can run: the second Q-Drift workflow needs the file that the first one writes.
WORKFLOWS = sorted((Path(__file__).resolve().parents[2] / "workflows").glob("*.json"))
# What a model file of a workflow is, by how its name begins.
FAMILIES = {"sd_xl": "sdxl", "v1-5": "sd15", "sd3.5": "sd3"}
FAMILIES |= {"wan2.1": "wan", "wan_2.1": "wan", "umt5": "wan", "qwen": "qwen"}
FAMILIES |= {"flux1": "flux", "t5xxl": "flux", "clip_l": "flux", "ae.": "flux"}
LOADERS = {
    "CheckpointLoaderSimple": ("StandInCheckpoint", "ckpt_name"),
    "UNETLoader": ("StandInModel", "unet_name"),
    "CLIPLoader": ("StandInClip", "clip_name"),
    "DualCLIPLoader": ("StandInClip", "clip_name1"),
    "VAELoader": ("StandInVae", "vae_name"),
}
STABILISERS = ("GimbalStabilise", "GimbalSAMG", "GimbalAQClip", "GimbalMicrograin")
SHIPPED = "gimbal_letters_fp16.safetensors"  # small as it is
SMALLER = 4  # times, each side of a picture: the layers are as wide as the real ones' narrowest


def with_stand_ins(workflow):
    swapped = {}
    for name, node in workflow.items():
        kind, inputs = node["class_type"], dict(node["inputs"])
        if kind in LOADERS and inputs.get("unet_name") != SHIPPED:
            kind, file = LOADERS[kind]
            (family,) = {family for start, family in FAMILIES.items() if inputs[file].startswith(start)}
            dtype = inputs.get("weight_dtype", "default")
            inputs = {"family": family, "weights": "float32" if dtype == "default" else f"float8_{dtype[4:]}"}
        elif kind.startswith("Empty"):
            inputs.update(width=inputs["width"] // SMALLER, height=inputs["height"] // SMALLER)
            if "length" in inputs:
                inputs["length"] = 9
        elif "steps" in inputs:
            inputs.update(steps=4, **({"runs": 2, "held_out": 1} if "runs" in inputs else {}))
        swapped[name] = {"class_type": kind, "inputs": inputs}
    return swapped


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_it_runs_to_pictures(server, artefacts, path):
    from devkit import client, graph

    workflow = graph.to_api(json.loads(path.read_text(encoding="utf-8")), server.get("/object_info"))
    before = len(server.log_lines())
    result = client.run(server.url, with_stand_ins(workflow))
    pictures = {}
    for node in result.outputs:
        for i, entry in enumerate(result.images(node)):
            title = workflow[node]["class_type"]
            image = Image.open(io.BytesIO(client.image(server.url, entry)))
            pictures[f"{path.stem}_{node}_{title}_{i}"] = image
            image.save(artefacts / f"{path.stem}_{node}_{title}_{i}.png")
    showing = ("SaveImage", "SaveAnimatedWEBP", "PreviewImage", "GimbalQDriftCalibrate", "GimbalQDriftReport")
    assert len(pictures) >= len([node for node in workflow.values() if node["class_type"] in showing]) >= 1
    for name, image in pictures.items():
        assert np.asarray(image.convert("RGB")).std() > 1, f"{name} is blank"
    said = server.log_lines()[before:]
    stages = [node for node in workflow.values() if node["class_type"].removesuffix("Latent") in STABILISERS]
    acted = [line for line in said if "acted on" in line]
    assert len(acted) == len(stages), said
    advice = [line for line in said if "(Q-Drift): " in line and ("advised is" in line or "as advised" in line)]
    assert len(advice) == len([n for n in workflow.values() if n["class_type"] == "GimbalQDrift"]), said
    assert not [line for line in said if "did nothing" in line or "took the gradient" in line]


def test_inpainting_changes_nothing_outside_the_mask(server):
    """On the demo model, whose decoder works on 4 x 4 pixels by themselves."""
    from devkit import client, graph
    from devkit.demo_model import on_demo_model

    (path,) = (path for path in WORKFLOWS if "inpainting" in path.stem)
    workflow = on_demo_model(graph.to_api(json.loads(path.read_text(encoding="utf-8")), server.get("/object_info")))
    result = client.run(server.url, workflow)
    prefix = {
        node: entry["inputs"]["filename_prefix"]
        for node, entry in workflow.items()
        if node in result.outputs and entry["class_type"] == "SaveImage"
    }
    pictures = {
        prefix[node]: np.stack(
            [np.asarray(Image.open(io.BytesIO(client.image(server.url, e)))) for e in result.images(node)]
        ).astype(int)
        for node in prefix
    }
    # The mask, 240 at (240, 200) of 512, is 30 at (30, 25) of 64; its edge is spread over one latent position.
    outside, inside = np.ones((64, 64), bool), np.zeros((64, 64), bool)
    outside[20:60, 24:64], inside[30:50, 36:56] = False, True
    for name in ("gimbal/plain", "gimbal/stabilised"):
        change = np.abs(pictures[name] - pictures["gimbal/before"])
        assert change[:, outside].max() <= 1 and change[:, inside].mean() > 5


def test_files_are_what_the_recipes_write(server):
    from devkit import comfyui, recipes
    from devkit.recipes.blueprints import BLUEPRINTS

    if comfyui.version(server.home) != comfyui.VERSION:
        pytest.skip(f"they are written with the nodes of ComfyUI {comfyui.VERSION}")
    known, root = server.get("/object_info"), WORKFLOWS[0].parents[1]
    written = {f"workflows/{name}": recipes.write(name, known) for name in recipes.RECIPES}
    written |= {f"demo/workflows/{name}": recipes.write(name, known) for name in recipes.DEMO_RECIPES}
    written |= {f"subgraphs/{flow.name}": flow for flow in (make(known) for make in BLUEPRINTS)}
    for name, flow in written.items():
        saved = json.loads((root / f"{name}.json").read_text(encoding="utf-8"))
        assert saved == json.loads(json.dumps(flow.saved())), f"{name}: write it anew with dev.py workflows"
    assert {path.stem for path in WORKFLOWS} == set(recipes.RECIPES)
