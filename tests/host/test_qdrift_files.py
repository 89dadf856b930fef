"""Loading, merging and reporting statistics; and all of it over HTTP, from a calibration to the loader's list."""

import json
import os
import time
from pathlib import Path

import pytest
import torch


@pytest.fixture
def folder(comfy, tmp_path, monkeypatch):
    """models/qdrift of this test alone."""
    import folder_paths

    kept = folder_paths.folder_names_and_paths.pop("qdrift", None)
    folder_paths.filename_list_cache.pop("qdrift", None)
    monkeypatch.setattr(folder_paths, "models_dir", str(tmp_path))
    monkeypatch.setattr(folder_paths, "temp_directory", str(tmp_path))
    (tmp_path / "qdrift").mkdir()
    yield tmp_path / "qdrift"
    folder_paths.filename_list_cache.pop("qdrift", None)
    folder_paths.folder_names_and_paths.pop("qdrift", None)
    if kept is not None:
        folder_paths.folder_names_and_paths["qdrift"] = kept


def statistics(seeds=(1, 2), error=0.2, **changes):
    from gimbal.calibration.moments import JointMoments
    from gimbal.calibration.provenance import Provenance
    from gimbal.calibration.statistics import QDriftStatistics

    levels = [10.0, 1.0, 0.1]
    runs = []
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed)
        runs.append([JointMoments(4) for _ in levels])
        for moments in runs[-1]:
            eps_hat = torch.randn(1, 4, 8, 8, generator=generator)
            moments.update(eps_hat, error * torch.randn(1, 4, 8, 8, generator=generator) + 0.1 * error * eps_hat)
    given = {"path": "ve", "latent_channels": 4, "latent_format": "SD15", "cfg": 3.0, "steps": 3, "solver": "euler"}
    provenance = Provenance(**{**given, "runs": len(seeds), "seeds": tuple(seeds), **changes})
    return QDriftStatistics.from_runs(levels, runs, provenance)


def load(file):
    from gimbal.nodes.qdrift_files import GimbalQDriftLoad

    return GimbalQDriftLoad.execute(file).args[0]


def merge(*parts, filename="", **more):
    from gimbal.nodes.qdrift_files import GimbalQDriftMerge

    return GimbalQDriftMerge.execute(*parts, filename=filename, **more).args


def listed():
    from gimbal.nodes.qdrift_files import GimbalQDriftLoad

    return GimbalQDriftLoad.define_schema().inputs[0].options


def test_load_lists_statistics_and_nothing_else(folder):
    saved = statistics()
    (folder / "theirs").mkdir()
    saved.save(folder / "a.safetensors")
    saved.save(folder / "theirs" / "b.safetensors")
    for other in ("trajectories/t/run_1.safetensors", ".resume/key/run_1.partial", "notes.txt"):
        (folder / other).parent.mkdir(parents=True, exist_ok=True)
        (folder / other).write_bytes(b"")
    assert [Path(name).as_posix() for name in listed()] == ["a.safetensors", "theirs/b.safetensors"]
    assert torch.equal(load("a.safetensors").m2, saved.m2)
    assert torch.equal(load(os.path.join("theirs", "b.safetensors")).m2, saved.m2)


def test_other_qdrift_folders_are_listed_too(folder, tmp_path):
    """As extra_model_paths.yaml adds them, before the pack is loaded."""
    import folder_paths

    more = tmp_path / "elsewhere"
    more.mkdir()
    folder_paths.add_model_folder_path("qdrift", str(more))
    statistics().save(more / "c.safetensors")
    (more / "c.txt").write_text("")
    assert listed() == ["c.safetensors"]


def test_a_changed_file_is_read_again(folder):
    from gimbal.nodes.qdrift_files import GimbalQDriftLoad

    path = folder / "a.safetensors"
    assert GimbalQDriftLoad.fingerprint_inputs("a.safetensors") == "missing"
    statistics().save(path)
    first = GimbalQDriftLoad.fingerprint_inputs("a.safetensors")
    assert GimbalQDriftLoad.fingerprint_inputs("a.safetensors") == first
    statistics(seeds=(3, 4)).save(path)
    assert GimbalQDriftLoad.fingerprint_inputs("a.safetensors") != first


def test_bad_files_are_refused_in_words(folder):
    (folder / "broken.safetensors").write_bytes(b"\x10" + bytes(200))
    with pytest.raises(ValueError, match=r"broken\.safetensors.*(calibrate again|copy the file again)"):
        load("broken.safetensors")
    for name in ("none.safetensors", "../../etc/passwd", None, 5, {}, "a\0b", "odd\udcff.safetensors"):
        with pytest.raises(ValueError, match="Q-Drift Load: models/qdrift holds no"):
            load(name)


def test_merging_is_exact_and_saves_if_asked(folder):
    from gimbal.calibration.statistics import QDriftStatistics

    one, two, three = (statistics(seeds=seeds) for seeds in ((1, 2), (3,), (4,)))
    merged, path = merge(one, two, fourth=three)
    assert path == "" and not list(folder.iterdir())
    assert merged.provenance.seeds == (1, 2, 3, 4)
    whole = statistics(seeds=(1, 2, 3, 4))
    torch.testing.assert_close(merged.m2, whole.m2, rtol=1e-12, atol=1e-12)
    merged, path = merge(one, two, filename="joined")
    assert torch.equal(QDriftStatistics.load(path).m2, merged.m2)
    assert merge(one, two, filename="joined")[1] == path
    assert merge(one, three, filename="joined")[1].endswith("joined_2.safetensors")
    with pytest.raises(ValueError, match=r"^Q-Drift Merge: cfg differs"):
        merge(one, statistics(seeds=(5,), cfg=4.0))
    with pytest.raises(ValueError, match="is in two of them"):
        merge(one, one)


def test_report_is_a_picture_and_a_text(folder, artefacts, monkeypatch):
    import numpy as np
    from PIL import Image

    from gimbal.calibration import plots
    from gimbal.calibration.verdict import verdict
    from gimbal.nodes.qdrift_files import GimbalQDriftReport

    for name, there in (("plots", True), ("table", False)):
        monkeypatch.setattr(plots, "available", lambda there=there: there)
        card, text, drawn = GimbalQDriftReport.execute(statistics()).args
        for what, image in (("card", card), (name, drawn)):
            assert image.ndim == 4 and image.shape[-1] == 3 and 0 <= image.min() < image.max() <= 1
            Image.fromarray((image[0].numpy() * 255).astype(np.uint8)).save(artefacts / f"qdrift_report_{what}.png")
    assert text.startswith(f"{verdict(statistics()).line} {verdict(statistics()).next_step}\n")
    assert "Gain c by rule auto" in text and text.rstrip().endswith(statistics().verdict())


def test_the_report_knows_its_file(folder):
    """Also from Calibrate and Merge, whose outputs carry no name."""
    from gimbal.calibration.statistics import QDriftStatistics
    from gimbal.host import qdrift_folder
    from gimbal.nodes.qdrift_files import GimbalQDriftReport

    found = statistics()
    unsaved = GimbalQDriftReport.execute(found).args[0]
    assert qdrift_folder.saved_as(found) is None
    qdrift_folder.save(statistics(seeds=(5,)), "other")
    path = qdrift_folder.save(found, "mine")
    assert qdrift_folder.saved_as(found) == qdrift_folder.saved_as(QDriftStatistics.load(path)) == path
    saved = GimbalQDriftReport.execute(found).args[0]
    assert saved.shape != unsaved.shape or not torch.equal(saved, unsaved)


def test_a_long_path_stays_within_the_card(comfy):
    from gimbal.calibration.verdict import Outcome, Verdict
    from gimbal.host.pictures.card import MARGIN, WIDTH, card

    found = Verdict(Outcome.HELPS, "w" * 200 + " m" * 90, "next " * 60)
    image = card(found, Path("models/qdrift") / f"{'q' * 90}.safetensors")
    assert image.shape[2] == WIDTH and image.shape[1] < 2 * WIDTH
    assert float(image[0, 80:, WIDTH - MARGIN + 2 :].min()) > 0.9, "letters in the margin"


def test_a_huge_file_is_not_hashed(folder, monkeypatch):
    from gimbal.nodes.qdrift_files import GimbalQDriftLoad

    (folder / "huge.safetensors").write_bytes(b"")
    os.truncate(folder / "huge.safetensors", 5 * 2**30)  # sparse
    start = time.monotonic()
    assert GimbalQDriftLoad.fingerprint_inputs("huge.safetensors") == f"{5 * 2**30} bytes"
    assert time.monotonic() - start < 1
    with pytest.raises(ValueError, match=r"huge\.safetensors: this is no safetensors file"):
        load("huge.safetensors")


def test_two_calibrations_that_save_at_once_both_stay(folder, monkeypatch):
    """Another process takes the name between the look and the write."""
    from gimbal.calibration.statistics import QDriftStatistics
    from gimbal.host import qdrift_folder

    ours, theirs = statistics(seeds=(1, 2)), statistics(seeds=(3, 4))
    same = qdrift_folder._same_runs
    lexists = os.path.lexists

    def taken_meanwhile(path):
        found = lexists(path)
        if os.path.basename(path) == "calibration.safetensors" and not found:
            theirs.save(path)
        return found

    monkeypatch.setattr(qdrift_folder.os.path, "lexists", taken_meanwhile)
    path = qdrift_folder.save(ours, "calibration")
    assert path.name == "calibration_2.safetensors" and same(path, ours)
    assert torch.equal(QDriftStatistics.load(folder / "calibration.safetensors").m2, theirs.m2)


def test_losses_rise_when_a_file_is_deleted_and_stay_when_it_is_written_again(folder):
    from gimbal.host import output_tracking

    path, widgets = folder / "a.safetensors", {"filename": "a", "steps": 3}
    assert output_tracking.deleted_count("node", widgets) == 0
    for round in range(3):
        before = output_tracking.deleted_count("node", widgets)
        path.write_bytes(b"")
        output_tracking.note("node", {**widgets, "model": object()}, path, before)
        assert output_tracking.deleted_count("node", widgets) == round
        assert output_tracking.deleted_count("node", {"filename": "a"}) == round, "steps may come over a link"
        path.unlink()
        assert output_tracking.deleted_count("node", widgets) == round + 1
    assert (
        output_tracking.deleted_count("other", widgets)
        == output_tracking.deleted_count("node", {**widgets, "steps": 4})
        == 0
    )
    (note,) = (folder.parent / "gimbal_qdrift").glob("*.json")
    note.write_text("[" * 10_000)
    assert output_tracking.deleted_count("node", widgets) == 0


UNET = "gimbal_letters_fp16.safetensors"


def calibration(text="G", **changes):
    """Load the demo model twice, once as fp8; calibrate; report."""
    inputs = {
        "full_model": ["1", 0],
        "quantized_model": ["2", 0],
        "latent": ["3", 2],
        "positive": ["3", 0],
        "negative": ["3", 1],
        "cfg": 4.0,
        "sampler_name": "euler",
        "scheduler": "simple",
        "steps": 6,
        "runs": 3,
        "first_seed": 7,
        "held_out": 1,
        "prompts": "",
        "negative_prompt": "",
        "correction": "drift and moments",
        "mode": "two passes",
        "trim": 0.0,
        "filename": "letters",
        **changes,
    }
    return {
        "1": {"class_type": "UNETLoader", "inputs": {"unet_name": UNET, "weight_dtype": "default"}},
        "2": {"class_type": "UNETLoader", "inputs": {"unet_name": UNET, "weight_dtype": "fp8_e4m3fn"}},
        "3": {"class_type": "GimbalDemoLetters", "inputs": {"text": text, "rows": 1}},
        "4": {"class_type": "GimbalQDriftCalibrate", "inputs": inputs},
        "5": {"class_type": "GimbalQDriftReport", "inputs": {"stats": ["4", 0]}},
    }


def test_calibrate_over_http_then_load(server, artefacts):
    from devkit import client
    from gimbal.calibration.statistics import QDriftStatistics

    seen = []
    result = client.run(server.url, calibration("GIMBAL"), lambda node, done, of: seen.append((node, done, of)))
    ours = [(done, of) for node, done, of in seen if node == "4"]
    total = 6 * (3 + 1 + 3 * 5 + 7)  # recorded; measured, and four times in closed loop; tried
    assert ours[-1] == (total, total) and [done for done, _ in ours] == sorted(done for done, _ in ours)
    for node in ("4", "5"):
        (entry,) = result.images(node)
        (artefacts / f"qdrift_letters_{node}.png").write_bytes(client.image(server.url, entry))
    path = server.base / "models" / "qdrift" / "letters.safetensors"
    found = QDriftStatistics.load(path)
    about = found.provenance
    assert about.full_model == about.quantized_model == UNET and about.path == "flow"
    assert "float8_e4m3fn" in about.quantization and "float8" not in about.torch
    left = [file for file in path.parent.rglob("*") if file.is_file() and file.parent != path.parent]
    assert not left and not list(path.parent.glob(".*.tmp")), "nothing is kept for a resume"
    files = server.get("/object_info/GimbalQDriftLoad")["GimbalQDriftLoad"]["input"]["required"]["file"]
    assert "letters.safetensors" in json.dumps(files)
    loading = {
        "1": {"class_type": "GimbalQDriftLoad", "inputs": {"file": "letters.safetensors"}},
        "2": {"class_type": "GimbalQDriftReport", "inputs": {"stats": ["1", 0]}},
    }
    assert client.run(server.url, loading).images("2")


def test_a_deleted_file_is_written_again(server):
    from devkit import client

    graph = calibration(steps=2, runs=1, held_out=0, correction="drift", filename="again")
    path = server.base / "models" / "qdrift" / "again.safetensors"
    client.run(server.url, graph)
    for _ in range(2):
        path.unlink()
        assert "4" in client.run(server.url, graph).executed and path.is_file()
        assert "4" not in client.run(server.url, graph).executed, "it is there, so nothing is done again"


def test_a_file_name_that_is_no_text_does_not_stop_the_server(server):
    from devkit import client

    folder = server.base / "models" / "qdrift"
    folder.mkdir(parents=True, exist_ok=True)
    odd = os.fsencode(folder) + b"/odd\xff.safetensors"
    with open(odd, "wb") as file:
        file.write(b"no statistics")
    name = os.fsdecode(os.path.basename(odd))
    try:
        loading = {
            "1": {"class_type": "GimbalQDriftLoad", "inputs": {"file": name}},
            "2": {"class_type": "GimbalQDriftReport", "inputs": {"stats": ["1", 0]}},
        }
        for _ in range(2):  # a worker that has died answers the first and never the second
            with pytest.raises(client.WorkflowFailed, match=r"its name is no text"):
                client.run(server.url, loading)
    finally:
        os.unlink(odd)


def test_interrupt_over_http_then_go_on(server):
    import urllib.request

    from devkit import client

    long = calibration(runs=4, steps=30, filename="interrupted", mode="interleaved")

    def interrupt(node, done, of):
        if node == "4" and done >= 100:  # in the second run
            urllib.request.urlopen(urllib.request.Request(f"{server.url}/interrupt", method="POST"), timeout=300)

    with pytest.raises(client.WorkflowFailed, match="interrupted"):
        client.run(server.url, long, interrupt)
    folder = server.base / "models" / "qdrift"
    assert not (folder / "interrupted.safetensors").exists() and list(folder.rglob("*.partial"))
    before = len(server.log_lines())
    client.run(server.url, long)
    assert [line for line in server.log_lines()[before:] if "Run 1 of 4 was measured before" in line]
    assert (folder / "interrupted.safetensors").exists() and not list(folder.rglob("*.partial"))


def test_refusals_over_http(server):
    from devkit import client

    with pytest.raises(client.WorkflowFailed, match="full_model and quantized_model are the same model"):
        client.run(server.url, calibration(quantized_model=["1", 0]))


def test_split_pair_over_http(server):
    from devkit import client
    from gimbal.calibration.statistics import QDriftStatistics

    graph = calibration(runs=2)
    del graph["5"]
    whole = graph.pop("4")["inputs"]
    names = ("full_model", "latent", "positive", "negative", "cfg", "sampler_name", "scheduler", "steps", "runs")
    recording = {name: whole[name] for name in (*names, "first_seed", "held_out", "prompts", "negative_prompt")}
    first = {**graph, "4": {"class_type": "GimbalQDriftRecord", "inputs": {**recording, "name": "letters"}}}
    del first["2"]
    client.run(server.url, first)
    names = ("quantized_model", "positive", "negative", "prompts", "correction", "trim")
    measuring = {name: whole[name] for name in names}
    measuring |= {"negative_prompt": "", "trajectory": "letters", "filename": "split"}
    second = {**graph, "4": {"class_type": "GimbalQDriftCalibrateFrom", "inputs": measuring}}
    del second["1"]
    client.run(server.url, second)
    client.run(server.url, calibration(runs=2, filename="at once"))
    split, whole = (
        QDriftStatistics.load(server.base / "models/qdrift" / f"{name}.safetensors") for name in ("split", "at once")
    )
    assert torch.equal(split.m2, whole.m2) and split.provenance == whole.provenance
    assert torch.equal(split.state_scale, whole.state_scale) and torch.equal(split.state_shift, whole.state_shift)
    assert split.trial == whole.trial and whole.trial.runs == 1


def test_where_nothing_is_there_yet_the_lists_say_what_to_do(comfy, tmp_path, monkeypatch):
    import folder_paths

    from gimbal.nodes.qdrift_files import GimbalQDriftLoad
    from gimbal.nodes.qdrift_trajectory import GimbalQDriftCalibrateFrom

    monkeypatch.setitem(folder_paths.folder_names_and_paths, "qdrift", ([str(tmp_path)], {".safetensors"}))
    folder_paths.filename_list_cache.pop("qdrift", None)
    for node, name, words in (
        (GimbalQDriftLoad, "file", "holds no statistics yet; run Q-Drift Calibrate"),
        (GimbalQDriftCalibrateFrom, "trajectory", "holds nothing yet; run Q-Drift Record Trajectory"),
    ):
        (chosen,) = (one for one in node.define_schema().inputs if one.id == name)
        assert len(chosen.options) == 1 and "press R" in chosen.options[0]
        for value in (chosen.options[0], "of_a_saved_workflow.safetensors"):
            told = node.validate_inputs(**{name: value})
            assert told.startswith(f"{node.NAME}: models/qdrift") and words in told and "press R" in told
        assert node.validate_inputs(**{name: None}) is True  # from another node
    (tmp_path / "there.safetensors").write_bytes(b"")
    folder_paths.filename_list_cache.pop("qdrift", None)
    assert GimbalQDriftLoad.validate_inputs("there.safetensors") is True
    assert "holds no 'gone'" in GimbalQDriftLoad.validate_inputs("gone")
    folder_paths.filename_list_cache.pop("qdrift", None)
