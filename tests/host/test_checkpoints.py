"""The command for a user's own checkpoints, on the demo model: pairs, going on, table, contact sheet."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
MODEL = "gimbal_letters_fp16.safetensors"
PROMPTS, SEEDS = ("GIM", "BAL"), (3, 8)


@pytest.fixture(scope="module", autouse=True)
def packages():
    """Make benchmarks/evidence and benchmarks/checkpoints importable, which no installed package is."""
    for name in ("evidence", "checkpoints"):
        if name not in sys.modules:
            folder = BENCHMARKS / name
            spec = importlib.util.spec_from_file_location(
                name, folder / "__init__.py", submodule_search_locations=[str(folder)]
            )
            sys.modules[name] = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(sys.modules[name])


@pytest.fixture
def given(server, tmp_path):
    """The command's arguments, for a workflow of three Save Image nodes as a frontend would save it."""
    from devkit import author

    flow = author.Workflow(server.get("/object_info"))
    letters = flow.node("GimbalDemoLetters", text="KERS")
    full = flow.node("UNETLoader", unet_name=MODEL)
    quantized = flow.node("UNETLoader", unet_name=MODEL, weight_dtype="fp8_e4m3fn")
    steady = flow.node("GimbalMicrograin", model=quantized[0], q_low=0.05, q_high=0.95)
    for name, model in (("full", full), ("plain", quantized), ("steady", steady)):
        common = {"positive": letters[0], "negative": letters[1], "latent_image": letters[2], "seed": 1, "steps": 3}
        sampled = flow.node("KSampler", model=model[0], cfg=5.0, scheduler="simple", **common)
        image = flow.node("GimbalDemoDecode", latent=sampled[0])
        flow.node("SaveImage", images=image[0], filename_prefix=f"gimbal/{name}")
    (tmp_path / "flow.json").write_text(json.dumps(flow.saved()))
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS))
    files = [
        "--workflow",
        tmp_path / "flow.json",
        "--prompts",
        tmp_path / "prompts.txt",
        "--output",
        tmp_path / "made",
    ]
    return ["--server", server.url, *map(str, files), "--seeds", ",".join(map(str, SEEDS))]


def queued(server):
    return len([line for line in server.log_lines() if "got prompt" in line])


def test_pairs_are_made_once_and_compared(server, given, tmp_path):
    from checkpoints import command, measures, pictures

    before = queued(server)
    done = subprocess.run([sys.executable, BENCHMARKS / "checkpoints", *given], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert queued(server) - before == len(PROMPTS) * len(SEEDS)
    album = pictures.Album(tmp_path / "made", PROMPTS, SEEDS)
    for name in ("full", "plain", "steady"):
        for i, letters in enumerate(PROMPTS):
            for seed in SEEDS:
                assert album.pictures(name, i, seed).shape == (len(letters), 3, 64, 64)
    assert not torch.equal(album.pictures("full", 0, 3), album.pictures("full", 1, 3)), "the prompt counts"
    assert not torch.equal(album.pictures("full", 0, 3), album.pictures("full", 0, 8)), "the seed counts"

    def psnr(name):  # by prompt, each the mean over its seeds
        pairs = [
            [(album.pictures(name, i, seed), album.pictures("full", i, seed)) for seed in SEEDS]
            for i in range(len(PROMPTS))
        ]
        return [sum(measures.of_pair(*pair)["psnr"] for pair in group) / len(group) for group in pairs]

    plain, steady = psnr("plain"), psnr("steady")
    assert all(15 < ours < theirs < 50 for ours, theirs in zip(steady, plain, strict=True))
    report = (tmp_path / "made" / "REPORT.md").read_text(encoding="utf-8")
    rows = [line.strip("| ").split(" | ") for line in report.splitlines() if line.startswith("| ")]
    assert [row[0] for row in rows[:5]] == ["variant", "---", "full (reference)", "plain (baseline)", "steady"]
    assert rows[0][1] == "PSNR, dB" and float(rows[3][1].split(" ")[0]) == pytest.approx(sum(plain) / 2, abs=0.6)
    change = next(row for row in rows if row[:2] == ["steady", "PSNR, dB"])
    assert float(change[2].split(" ")[0]) == pytest.approx((sum(steady) - sum(plain)) / 2, abs=0.6)
    assert {row[3] for row in rows[6:]} - {"---", "is"} <= {"better", "worse", "higher", "lower", "no difference"}
    assert "2 prompts, 2 seeds" in report and "4 pairs are few" in report
    with Image.open(tmp_path / "made" / "sheet.png") as sheet:
        assert sheet.width > 4 * 64 and sheet.height > 3 * 64

    lost = album.paths("plain", 1, 8)[0]
    content = lost.read_bytes()
    lost.unlink()
    command.main(given)
    assert queued(server) - before == len(PROMPTS) * len(SEEDS) + 1
    assert lost.read_bytes() == content, "the same picture comes back"


def test_what_cannot_be_compared_is_said(given, tmp_path):
    from checkpoints import command

    from devkit.paths import Stop

    for more, message in (
        (["--variants", "fill"], "fill is not among the pictures; there are"),
        (["--reference", "best"], "best is not among the pictures; there are full, plain, steady"),
        (["--variants", "plain", "--fid"], "FID needs something to compare with"),
        (["--server", "http://127.0.0.1:9"], "no ComfyUI answers at http://127.0.0.1:9"),
    ):
        with pytest.raises(Stop, match=message):
            command.main([*given, *more])
    assert not (tmp_path / "made").exists()
    command.main([*given, "--variants", "full", "--seeds", "3"])
    (tmp_path / "prompts.txt").write_text("KER")
    with pytest.raises(Stop, match="holds pictures of other prompts"):
        command.main(given)
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS))
    flow = json.loads((tmp_path / "flow.json").read_text())
    next(node for node in flow["nodes"] if node["type"] == "KSampler")["widgets_values"][2] = 4  # steps
    (tmp_path / "flow.json").write_text(json.dumps(flow))
    with pytest.raises(Stop, match="holds pictures of 'full' from another workflow"):
        command.main(given)


@pytest.mark.parametrize(
    ("name", "variants"),
    [
        ("Guide calm places - SDXL", {"plain", "samg"}),
        ("Fix burnt colours, all nodes - SDXL", {"plain", "stacked"}),
        ("Fix burnt video - Wan 2.1", {"plain", "stabilised"}),
        ("Reuse a calibration - Flux GGUF", {"plain", "corrected"}),
    ],
)
def test_bundled_workflows_are_understood(server, name, variants):
    from checkpoints import graphs

    found = graphs.load(BENCHMARKS.parent / "workflows" / f"{name}.json", server.get("/object_info"))
    assert set(found.variants) == variants
    filled = found.filled("a lake", 3)
    texts = [entry["inputs"]["text"] for entry in filled.values() if "text" in entry["inputs"]]
    assert texts.count("a lake") == 1 and len(texts) == 2, "the negative prompt stays"
    links = {tuple(entry["inputs"]["seed"]) for entry in filled.values() if "seed" in entry["inputs"]}
    ((source, _),) = links
    assert filled[source]["inputs"]["value"] == 3, "one node's seed, for all samplers"


def test_measures_that_need_a_download_are_left_out_with_a_word(given, tmp_path, monkeypatch):
    import huggingface_hub.constants
    from checkpoints import command

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    command.main([*given, "--seeds", "3", "--variants", "full,plain", "--clip"])
    report = (tmp_path / "made" / "REPORT.md").read_text(encoding="utf-8")
    assert "Not measured: the CLIP score is not to be had here" in report and "PSNR" in report
