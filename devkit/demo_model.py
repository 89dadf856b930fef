"""Any of the bundled workflows on the demo model: the same graph with only loaders, prompts and decoders exchanged."""

from __future__ import annotations

from typing import Any

from .client import Workflow

MODEL = "gimbal_letters_fp16.safetensors"
PROMPTS = (
    "GIMBAL",
    "GIMBAL",
    "KERSEK",
)  # of the first three texts; the third is what an inpainting paints into its mask
# Settings of families that the demo model is not of: passed over.
FAMILY_NODES = {"ModelSamplingSD3": "model", "ModelSamplingAuraFlow": "model", "FluxGuidance": "conditioning"}
GGUF = {"preset": "own", "weight_bits": "4", "activation_bits": "off", "group_size": 32, "rank": 0, "layers": "blocks"}
TILES = {"tile": 8, "stride": 4}  # as much of its latents as the default is of usual ones


def on_demo_model(workflow: Workflow) -> Workflow:
    """The graph on the letters model; one that is made for it stays as it is."""
    kinds = {name: node["class_type"] for name, node in workflow.items()}
    if "GimbalDemoLetters" in kinds.values():
        return dict(workflow)
    texts = [name for name, kind in kinds.items() if kind == "CLIPTextEncode"]
    swapped: Workflow = {}

    def letters(text: str) -> str:
        swapped.setdefault(f"letters {text}", {"class_type": "GimbalDemoLetters", "inputs": {"text": text, "rows": 1}})
        return f"letters {text}"

    def source(name: str, value: Any) -> Any:
        """What an input of that name takes instead."""
        while isinstance(value, list) and (through := FAMILY_NODES.get(kinds[value[0]])):
            value = workflow[value[0]]["inputs"][through]
        if not isinstance(value, list):
            return value
        if name == "negative":
            return [letters(PROMPTS[0]), 1]
        if name == "positive":
            return [letters(PROMPTS[texts.index(value[0])]), 0]
        return [letters(PROMPTS[0]), 2] if kinds[value[0]].startswith("Empty") else value

    for number, node in workflow.items():
        kind, inputs = node["class_type"], {name: source(name, value) for name, value in node["inputs"].items()}
        match kind:
            case "CheckpointLoaderSimple" | "UNETLoader":
                kind, inputs = "UNETLoader", _model(inputs.get("weight_dtype", "default"))
            case "UnetLoaderGGUF":
                swapped[f"{number} full"] = {"class_type": "UNETLoader", "inputs": _model("default")}
                kind, inputs = "GimbalSimulateQuantization", {"model": [f"{number} full", 0], **GGUF}
            case "VAEDecode":
                kind, inputs = "GimbalDemoDecode", {"latent": inputs["samples"]}
            case "GimbalAQClip" | "GimbalAQClipLatent":
                inputs |= TILES
            case "GimbalQDriftCalibrate":
                letter = letters(PROMPTS[0])
                inputs |= {"positive": [letter, 0], "negative": [letter, 1], "prompts": ""}
                inputs |= {"runs": 3, "held_out": 1}  # what a processor alone does in minutes
                del inputs["clip"]
        swapped[number] = {"class_type": kind, "inputs": inputs}
    return _needed(swapped)


def _model(weight_dtype: str) -> dict:
    return {"unet_name": MODEL, "weight_dtype": weight_dtype}


def _needed(workflow: Workflow) -> Workflow:
    """Without the loaders and texts that nothing takes from any more."""
    ends = ("SaveImage", "SaveAnimatedWEBP", "PreviewImage", "GimbalQDriftCalibrate", "GimbalQDriftReport")
    found: Workflow = {}
    wanted = [name for name, node in workflow.items() if node["class_type"] in ends]
    while wanted:
        name = wanted.pop()
        if name not in found:
            found[name] = workflow[name]
            wanted += [value[0] for value in workflow[name]["inputs"].values() if isinstance(value, list)]
    return found
