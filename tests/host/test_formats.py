"""Real quantized files, through the loaders that people use: calibrated, corrected and reported over HTTP.

docs/FORMATS.md states the errors; they are compared with what is measured here.
"""

import importlib.util
import re
from pathlib import Path

import pytest
import torch
from quantized_layouts import ALGORITHMS
from safetensors.torch import load_file

DOC = Path(__file__).resolve().parents[2] / "docs" / "FORMATS.md"
FULL = "gimbal_letters_fp16.safetensors"
CAST = "weight_dtype"  # no file of its own: the loader casts
SAFETENSORS = ("fp8", "fp8_scaled", "fp8_mixed", "fp8_tagged", "nvfp4", "mxfp8", "int8", "convrot_w4a4", "asym_w4a8")
GGUF = ("gguf-q8_0", "gguf-q5_0", "gguf-q4_0")
MISREAD = ("fp8_mixed", "fp8_tagged")  # by a ComfyUI that does not know them: it loads them without an error
SEEDS, SEED = (0, 1), 5  # of the calibration, and of a run beside it
STEPS, CFG = 4, 3.0
# What a calibration file says of the weights, by format; new ComfyUI reads all fp8 files into one kind of tensor.
NAMES = {
    CAST: "float8_e4m3fn",
    "fp8": "float8_e4m3fn|float32 100 %",  # on the CPU it is held in float32, rounded as it is
    "fp8_scaled": "float8_e4m3fn|TensorCoreFP8E4M3Layout",
    "fp8_mixed": "TensorCoreFP8(E4M3)?Layout",
    "fp8_tagged": "TensorCoreFP8(E4M3)?Layout",
    "nvfp4": "TensorCoreNVFP4Layout",
    "mxfp8": "TensorCoreMXFP8Layout",
    "int8": "TensorWiseINT8Layout",
    "convrot_w4a4": "TensorCoreConvRotW4A4Layout",
    "asym_w4a8": "AsymW4A8Int8Layout",
    "gguf-q8_0": "GGUF Q8_0",
    "gguf-q5_0": "GGUF Q5_0",
    "gguf-q4_0": "GGUF Q4_0",
}


def missing(home, name):
    """What this ComfyUI lacks to read files of a format, or ""; by what its own source declares."""
    source = {module: home / "comfy" / f"{module}.py" for module in ("ops", "quant_ops")}
    text = {module: path.read_text(encoding="utf-8") if path.exists() else "" for module, path in source.items()}
    declared = {
        one or two for one, two in re.findall(r'QUANT_ALGOS\["(\w+)"\]|^    "(\w+)": \{', text["quant_ops"], re.M)
    }
    if name in ALGORITHMS and ALGORITHMS[name] not in declared:
        return f"a ComfyUI whose comfy/quant_ops.py lists {ALGORITHMS[name]}"
    if name == "fp8_tagged" and "comfy_quant" not in text["ops"]:
        return "a ComfyUI whose comfy/ops.py reads comfy_quant"
    kitchen = name in (*ALGORITHMS, "fp8_scaled", "fp8_tagged") and "import comfy_kitchen" in text["quant_ops"]
    if kitchen and importlib.util.find_spec("comfy_kitchen") is None:
        return "the package comfy-kitchen, which this ComfyUI requires"
    if name in GGUF and importlib.util.find_spec("gguf") is None:
        return "the package gguf"
    return ""


@pytest.fixture(scope="module")
def gguf_pack():
    from devkit import gguf_pack
    from devkit.paths import Stop

    try:
        return gguf_pack.locate()
    except Stop as stop:
        return stop


@pytest.fixture(scope="module")
def server(comfyui_home, tmp_path_factory, gguf_pack):
    """A server of its own: the twins must lie there, and the GGUF pack be installed, before it starts."""
    from devkit import base
    from devkit import gguf_pack as packs
    from devkit.quantized import formats
    from devkit.server import Server

    folder = base.make(tmp_path_factory.mktemp("formats"))
    models = folder / "models" / "diffusion_models"
    for name in formats.FORMATS:
        if name in MISREAD or not missing(comfyui_home, name):
            formats.make(models / FULL, name, models / f"{name}{formats.suffix(name)}")
    if isinstance(gguf_pack, Path):
        packs.install(folder / "custom_nodes")
    with Server(comfyui_home, folder) as running:
        yield running


@pytest.fixture
def queue(server):
    """`queue(build)`: runs the graph that `build(flow)` makes; its result."""
    from devkit import author, client, graph

    info = server.get("/object_info")

    def queue(build):
        flow = author.Workflow(info)
        build(flow)
        return client.run(server.url, graph.to_api(flow.saved(), info))

    return queue


def load(flow, name):
    if name == "full":
        return flow.node("UNETLoader", unet_name=FULL)[0]
    if name == CAST:
        return flow.node("UNETLoader", unet_name=FULL, weight_dtype="fp8_e4m3fn")[0]
    if name in GGUF:
        return flow.node("UnetLoaderGGUF", unet_name=f"{name}.gguf")[0]
    return flow.node("UNETLoader", unet_name=f"{name}.safetensors")[0]


class Bench:
    """A graph with both models, a calibration and samplers that share them."""

    def __init__(self, flow, name):
        self.flow, self.name = flow, name
        self.letters = flow.node("GimbalDemoLetters", text="GIM")
        self.full, self.quantized = load(flow, "full"), load(flow, name)

    def calibrate(self, filename, **options):
        given = {"positive": self.letters[0], "negative": self.letters[1], "latent": self.letters[2], "cfg": CFG}
        models = {"full_model": self.full, "quantized_model": self.quantized}
        given |= {"steps": STEPS, "runs": len(SEEDS), "first_seed": SEEDS[0], "filename": filename}
        return self.flow.node("GimbalQDriftCalibrate", **given, **models, **options)

    def corrected(self, stats, correction):
        return self.flow.node("GimbalQDrift", model=self.quantized, stats=stats, correction=correction)[0]

    def sample(self, model, saved, seed=SEED):
        given = {"positive": self.letters[0], "negative": self.letters[1], "latent_image": self.letters[2]}
        given |= {"seed": seed, "steps": STEPS, "cfg": CFG, "scheduler": "simple"}
        sampled = self.flow.node("KSampler", model=model, **given)
        self.flow.node("SaveLatent", samples=sampled[0], filename_prefix=f"{self.name}-{saved}")


def latent(server, name, saved):
    (path,) = (server.base / "output").glob(f"{name}-{saved}_*.latent")
    return load_file(path)["latent_tensor"].double()


def skip_unless_read(home, gguf_pack, name):
    if needed := missing(home, name):
        pytest.skip(f"{name} needs {needed}")
    if name in GGUF and not isinstance(gguf_pack, Path):
        pytest.skip(str(gguf_pack))


def stated():
    """What docs/FORMATS.md says: format -> cells by column."""
    rows = [line.strip("| ").split(" | ") for line in DOC.read_text(encoding="utf-8").splitlines() if line[:1] == "|"]
    header = next(row for row in rows if row[0] == "format")
    return {row[0].strip("`"): dict(zip(header, row, strict=True)) for row in rows if len(row) == len(header)}


@pytest.mark.parametrize("name", [CAST, *SAFETENSORS, *GGUF])
def test_a_twin_is_calibrated_corrected_and_reported(comfyui_home, gguf_pack, server, queue, name):
    from gimbal.calibration import report
    from gimbal.calibration.statistics import QDriftStatistics

    skip_unless_read(comfyui_home, gguf_pack, name)

    def build(flow):
        bench = Bench(flow, name)
        stats = bench.calibrate(name, correction="drift", held_out=0)[0]
        flow.node("GimbalQDriftReport", stats=stats)
        bench.sample(bench.full, "full")
        bench.sample(bench.quantized, "plain")
        bench.sample(bench.corrected(stats, "drift"), "corrected")

    result = queue(build)
    assert len([entry for node in result.outputs for entry in result.images(node)]) == 2, "two reports as pictures"
    found = QDriftStatistics.load(server.base / "models" / "qdrift" / f"{name}.safetensors")
    assert found.provenance.full_model == FULL and name.removeprefix(CAST) in found.provenance.quantized_model
    assert re.search(NAMES[name], found.provenance.quantization), found.provenance.quantization
    error = float(stated()[name]["error"].rstrip(" %")) / 100
    assert report.relative_error(found) == pytest.approx(error, rel=0.1)
    full, plain, corrected = (latent(server, name, saved) for saved in ("full", "plain", "corrected"))
    assert torch.isfinite(corrected).all() and not torch.equal(corrected, plain)
    away, still = (float((each - full).norm() / full.norm()) for each in (plain, corrected))
    assert error < away < 6 * error and still == pytest.approx(away, rel=0.1)


@pytest.mark.parametrize("name", [CAST, "gguf-q4_0"])
def test_moments_are_matched_and_advice_is_followed(comfyui_home, gguf_pack, server, queue, name):
    """On the calibrated runs themselves moment matching restores every channel's mean and deviation."""
    from gimbal.calibration.statistics import QDriftStatistics

    skip_unless_read(comfyui_home, gguf_pack, name)
    before = len(server.log_lines())

    def build(flow):
        bench = Bench(flow, name)
        stats = bench.calibrate(f"{name}-moments", correction="drift and moments", held_out=1)[0]
        for seed in SEEDS:
            bench.sample(bench.full, f"full{seed}", seed)
            bench.sample(bench.quantized, f"plain{seed}", seed)
            for correction in ("drift", "moments", "both", "advised"):
                bench.sample(bench.corrected(stats, correction), f"{correction}{seed}", seed)

    queue(build)

    def latents(kind):
        return torch.cat([latent(server, name, f"{kind}{seed}") for seed in SEEDS])

    full = latents("full")
    away = {kind: apart(latents(kind), full) for kind in ("plain", "drift", "moments", "both")}
    assert max(away["moments"], away["both"]) < 1e-4 * away["plain"] and away["drift"] != away["plain"]
    found = QDriftStatistics.load(server.base / "models" / "qdrift" / f"{name}-moments.safetensors")
    advice = found.trial.advice()
    lines = server.log_lines()[before:]
    said = [line for line in lines if "changes nothing, as advised" in line or "advised is" in line]
    assert said and all(("changes nothing" in line) != bool(advice.correction) for line in said)
    if advice.strength in (0.0, 1.0):
        assert torch.equal(latents("advised"), latents(advice.correction or "plain"))


def apart(ours, theirs):
    """How far the channels' means and deviations are from one another."""
    one, two = (torch.stack([part.mean((0, 2, 3)), part.std((0, 2, 3), correction=0)]) for part in (ours, theirs))
    return float((one - two).norm())


def test_the_page_says_which_versions_read_what(comfyui_home):
    from devkit import comfyui

    version = comfyui.version(comfyui_home)
    rows = stated()
    assert set(rows) - {"format", "---"} == {CAST, *SAFETENSORS, *GGUF}
    if version not in rows[CAST]:
        pytest.skip(f"docs/FORMATS.md has no column for ComfyUI {version}")
    for name in (CAST, *SAFETENSORS, *GGUF):
        needed = missing(comfyui_home, name)
        assert (rows[name][version] == "yes") == (not needed.startswith("a ComfyUI")), (name, needed)


def test_full_precision_against_itself_is_refused(server, queue):
    from devkit.client import WorkflowFailed

    with pytest.raises(WorkflowFailed, match="full_model and quantized_model are the same model"):
        queue(lambda flow: Bench(flow, "full").calibrate("full"))


def test_files_that_are_silently_misread_are_refused(comfyui_home, server, queue):
    from devkit.client import WorkflowFailed

    misread = [name for name in MISREAD if missing(comfyui_home, name).startswith("a ComfyUI")]
    if not misread:
        pytest.skip("this ComfyUI reads all these files")
    for name in misread:
        with pytest.raises(
            WorkflowFailed, match=r"the error is \d+% of the signal or more at every step: most likely"
        ):
            queue(lambda flow, name=name: Bench(flow, name).calibrate(name))
