"""The builder of workflows and blueprints: what it refuses, where it puts things, and what lies beside its files."""

import json
from pathlib import Path

import pytest
from PIL import Image

from devkit.author import File, Workflow
from devkit.blueprint import Blueprint
from devkit.demo_model import on_demo_model
from devkit.graph import CONTROL

ROOT = Path(__file__).resolve().parent.parent
DEMO = sorted((ROOT / "demo" / "workflows").glob("*.json"))
GRAPHS = ROOT / "docs" / "workflows"
BEFORE = "The picture to change"  # of the inpainting: made first, with guidance of its own
WORKFLOWS = sorted((ROOT / "workflows").glob("*.json"))
INFO = {
    "Loader": {
        "input": {"required": {"file": [["a.safetensors", "b.safetensors"]]}},
        "output": ["MODEL", "CLIP"],
        "output_name": ["MODEL", "CLIP"],
        "python_module": "nodes",
    },
    "Sampler": {
        "input": {
            "required": {
                "model": ["MODEL"],
                "seed": ["INT", {"default": 0, "control_after_generate": True}],
                "steps": ["INT", {"default": 20}],
            },
            "optional": {"clip": ["CLIP"]},
        },
        "output": ["LATENT"],
        "output_name": ["LATENT"],
        "python_module": "custom_nodes.gimbal",
    },
}
INFO["Number"] = {
    "input": {"required": {"value": ["INT", {"control_after_generate": True}]}},
    "output": ["INT"],
    "output_name": ["INT"],
    "python_module": "comfy_extras.nodes_primitive",
}
FILES = {"b.safetensors": File("checkpoints", "https://example.org/b.safetensors")}


@pytest.fixture
def flow():
    return Workflow(INFO, "test", FILES)


def test_a_node_is_saved_as_the_frontend_does(flow):
    loader = flow.node("Loader", file="b.safetensors")
    flow.node("Sampler", model=loader[0], steps=8, caption="Plain")
    flow.grid([[loader]])
    flow.group("Load", [loader])
    saved = flow.saved()
    sampler = saved["nodes"][1]
    assert sampler["widgets_values"] == [0, "fixed", 8] and sampler["title"] == "Plain"
    assert [(slot["name"], slot["link"]) for slot in sampler["inputs"]] == [("model", 1), ("clip", None)]
    assert saved["links"] == [[1, 1, 0, 2, 0, "MODEL"]] and saved["nodes"][0]["outputs"][0]["links"] == [1]
    assert sampler["properties"]["cnr_id"] == "gimbal"
    assert saved["nodes"][0]["properties"]["cnr_id"] == "comfy-core"
    wanted = {"name": "b.safetensors", "url": "https://example.org/b.safetensors", "directory": "checkpoints"}
    assert saved["nodes"][0]["properties"]["models"] == [wanted]


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"cfg": 7.0}, "Sampler has no input cfg; it has model, seed, steps, clip"),
        ({}, r"Sampler \(node 2\) needs model; connect it"),
        ({"model": 1}, "Sampler takes MODEL, not output 1 of Loader"),
    ],
)
def test_a_wrong_input_is_refused(flow, inputs, message):
    loader = flow.node("Loader")
    inputs = {name: loader[value] if name == "model" else value for name, value in inputs.items()}
    with pytest.raises(ValueError, match=message):
        flow.node("Sampler", **inputs)


def test_a_widget_can_take_another_nodes_output(flow):
    loader, count = flow.node("Loader"), flow.node("Number", value=7)
    sampler = flow.node("Sampler", model=loader[0], seed=count[0]).saved
    assert [(slot["name"], slot["link"]) for slot in sampler["inputs"]] == [
        ("model", 1),
        ("clip", None),
        ("seed", 2),
        ("steps", None),
    ]
    assert flow.saved()["links"][1] == [2, 2, 0, 3, 2, "INT"], "the fourth is the slot's place among the inputs"
    assert sampler["widgets_values"] == [0, "fixed", 20] and count.saved["outputs"][0]["links"] == [2]


def test_room_is_kept_for_both_ways_of_drawing(flow):
    """As measured: a pack's sampler of two inputs and two numbers, and a core loader whose file is missing."""
    loader = flow.node("Loader", file="b.safetensors")
    sampler = flow.node("Sampler", model=loader[0])
    assert (sampler.height, sampler.room) == (16 + 40 + 3 * 24, max(16 + 40 + 3 * 24, 14 + 40 + 2 * 28 + 24))
    spoken = {**INFO["Sampler"], "output": ["MODEL"], "output_name": ["MODEL"]}
    spoken["input"] = {"required": {"model": ["MODEL"], "knee": ["FLOAT", {"default": 0.8, "advanced": True}]}}
    spoken["input"]["hidden"] = {"unique_id": ["UNIQUE_ID"]}
    patch = Workflow({**INFO, "Patch": spoken}, "test")
    assert patch.node("Patch", model=patch.node("Loader")[0]).room == 14 + 20 + 28 + 2 * 24 + 70
    spoken["output_node"] = True
    assert patch.node("Patch", model=patch.node("Loader")[0]).room == 14 + 20 + 28 + 2 * 24 + 70 + 300
    assert (loader.height, loader.room) == (16 + 40 + 24, 14 + 40 + 28 + 24)
    note = flow.note("What", "text", height=90, room=200)
    flow.grid([[loader, note, sampler]])
    assert sampler.saved["pos"][1] == loader.room + note.room + 2 * (30 + 40)
    flow.group("All", [loader, note])
    (group,) = flow.groups
    assert group["bounding"][1] + group["bounding"][3] == note.saved["pos"][1] + note.room + 20
    assert note.saved["size"][1] == 90, "what is saved is the canvas node's"


def test_columns_of_one_number_are_in_line(flow):
    narrow, wide, last, below = (flow.node("Loader", size=(width, 100)) for width in (100, 300, 900, 100))
    right = flow.grid([[narrow], [last]], [[wide], [below]])
    # 300 + 40 is where the second column starts; a row's last column may be wider.
    assert [node.saved["pos"][0] for node in (narrow, last, wide, below)] == [0, 340, 0, 340]
    assert right == 340 + 900 + 80
    assert wide.saved["pos"][1] == below.saved["pos"][1] >= 100 + 30


def test_a_blueprint_shows_its_widgets_and_ends():
    flow = Blueprint("Box", INFO, {"model": "MODEL"}, "Says what it is.")
    sampler = flow.node("Sampler", model=flow.outside[0], steps=8)
    flow.grid([[sampler]])
    flow.widget("how many", sampler, "steps")
    flow.output("latent", sampler[0])
    saved = flow.saved()
    (node,), (inner,) = saved["nodes"], saved["definitions"]["subgraphs"]
    assert node["type"] == inner["id"] and saved["extra"] == {"BlueprintDescription": "Says what it is."}
    assert node["properties"]["proxyWidgets"] == [["-1", "how many"]] and node["widgets_values"] == [8]
    assert [entry["name"] for entry in inner["inputs"]] == ["model", "how many"]
    assert [entry["linkIds"] for entry in inner["inputs"]] == [[1], [2]]
    ends = [(link["origin_id"], link["target_id"], link["target_slot"]) for link in inner["links"]]
    # Sampler's inputs: model, clip, then the widgets seed and steps.
    assert ends == [(-10, 1, 0), (-10, 1, 3), (1, -20, 0)]
    assert inner["outputs"][0]["linkIds"] == [3]


def test_a_workflow_is_put_on_the_demo_model():
    drawn = {"class_type": "CLIPTextEncode", "inputs": {"clip": ["1", 1], "text": "a fox"}}
    sampler = {"model": ["5", 0], "positive": ["2", 0], "negative": ["3", 0], "latent_image": ["4", 0]}
    swapped = on_demo_model(
        {
            "1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "a"}},
            "2": drawn,
            "3": drawn,
            "4": {"class_type": "EmptyLatentImage", "inputs": {"width": 512}},
            "5": {"class_type": "ModelSamplingSD3", "inputs": {"model": ["1", 0], "shift": 3.0}},
            "6": {"class_type": "KSampler", "inputs": {**sampler, "seed": 7}},
            "7": {"class_type": "VAEDecode", "inputs": {"samples": ["6", 0], "vae": ["1", 2]}},
            "8": {"class_type": "SaveImage", "inputs": {"images": ["7", 0]}},
        }
    )
    letters = "letters GIMBAL"
    assert set(swapped) == {"1", "6", "7", "8", letters}, "what nothing takes from any more is gone"
    assert swapped["6"]["inputs"] == {
        "model": ["1", 0],
        "positive": [letters, 0],
        "negative": [letters, 1],
        "latent_image": [letters, 2],
        "seed": 7,
    }
    assert swapped["7"] == {"class_type": "GimbalDemoDecode", "inputs": {"latent": ["6", 0]}}


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_every_workflow_has_its_picture_and_an_id_of_its_own(path):
    picture = path.with_suffix(".jpg")
    assert picture.stat().st_size < 40_000
    with Image.open(picture) as image:
        assert image.size == (400, 400)
    ids = [json.loads(other.read_text(encoding="utf-8"))["id"] for other in WORKFLOWS]
    assert ids.count(json.loads(path.read_text(encoding="utf-8"))["id"]) == 1


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_its_picture_to_drag_holds_the_workflow(path):
    """Where ComfyUI's frontend looks for one in a PNG."""
    with Image.open(GRAPHS / f"{path.stem}.png") as image:
        assert json.loads(image.text["workflow"]) == json.loads(path.read_text(encoding="utf-8"))
        assert image.size == (400, 400)


def given(flow, node, name):
    """An input's value, or the node and output that it is linked to."""
    links = {link[0]: tuple(link[1:3]) for link in flow["links"]}
    for slot in node["inputs"]:
        if slot["name"] == name and slot["link"] is not None:
            return links[slot["link"]]
    return node["widgets_values"][{"seed": 0, "cfg": 3}[name]]


@pytest.mark.parametrize("path", [*WORKFLOWS, *DEMO], ids=lambda path: path.stem)
def test_samplers_that_are_compared_keep_one_seed(path):
    """A control that changes the seed after a run would change each sampler's by itself."""
    flow = json.loads(path.read_text(encoding="utf-8"))
    samplers = [node for node in flow["nodes"] if node["type"].startswith("KSampler")]
    assert samplers or "repair" in path.stem
    assert len({given(flow, node, "seed") for node in samplers}) <= 1
    controls = [value for node in flow["nodes"] for value in node.get("widgets_values", []) if value in CONTROL]
    assert len(controls) >= len(samplers) and set(controls) <= {"fixed"}


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_one_node_sets_the_seed_and_one_the_cfg_of_what_is_compared(path):
    """What compared samplers do not share, a reader would take for the stabiliser's work. Flux runs at cfg 1 throughout."""
    flow = json.loads(path.read_text(encoding="utf-8"))
    kinds = {node["id"]: node["type"] for node in flow["nodes"]}
    samplers = [node for node in flow["nodes"] if node["type"] == "KSampler" and node["title"] != BEFORE]
    seeds, cfgs = ({given(flow, node, name) for node in samplers} for name in ("seed", "cfg"))
    assert [kinds[node] for node, _ in seeds] == ["PrimitiveInt"] * bool(samplers)
    assert cfgs <= {1.0} or [kinds[node] for node, _ in cfgs] == ["PrimitiveFloat"]


def test_no_picture_is_left_without_its_workflow():
    assert {path.stem for path in (ROOT / "workflows").glob("*.jpg")} == {path.stem for path in WORKFLOWS}
    assert {path.stem for path in GRAPHS.glob("*.png")} == {path.stem for path in WORKFLOWS}
