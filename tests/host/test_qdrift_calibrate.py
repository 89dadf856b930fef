"""Paired calibration on really quantized twins, against a plain computation; refusals, Cancel, crashes."""

import contextlib
import os
import random
import re
import shutil
import signal
import time

import numpy as np
import pytest
import torch
from calibrating import Cancelled, assert_same, calibrate_from, cancelling, counted, evaluate, record

pytestmark = pytest.mark.usefixtures("folders")

MODES = ("two passes", "interleaved")


def kept(folder):
    """Files left for a resume: full precision's runs, and results of the quantized model."""
    found = list(folder.rglob("*.partial"))
    full = [path for path in found if path.parent.name.startswith("full_")]
    return full, [path for path in found if path not in full]


@pytest.mark.numerics
@pytest.mark.parametrize("family", ["sd3", "sd15"])
def test_it_equals_a_plain_computation(comfy, tiny, twin, calibrate, family):
    statistics, _, path, *_ = calibrate(family)
    full, quantized = tiny.model(family), twin(family)
    positive, negative = tiny.conditioning(family)
    pairs = {}  # sigma -> [eps_hat, delta] per run
    for seed in (11, 12):
        seen = []
        tiny.sample(
            full, family, seed=seed, callback=lambda i, d, x, n, seen=seen: seen.append((x.clone(), d.clone()))
        )
        levels = comfy.samplers.KSampler(full, 3, "cpu", "euler", "simple").sigmas
        for (x, denoised), sigma in zip(seen, levels, strict=False):
            denoised_hat = evaluate(comfy, quantized, x, float(sigma), positive, negative, 3.0)
            eps, eps_hat = (((x - d) / sigma).double().numpy() for d in (denoised, denoised_hat))
            pairs.setdefault(float(sigma), []).append((eps_hat, eps_hat - eps))
    assert statistics.sigma.tolist() == list(pairs)
    for i, runs in enumerate(pairs.values()):
        eps_hat, delta = (np.concatenate([run[part] for run in runs]) for part in (0, 1))
        for c in range(statistics.channels):
            cov = np.cov(eps_hat[:, c].ravel(), delta[:, c].ravel(), bias=True)
            variance = cov[1, 1] - cov[0, 1] ** 2 / cov[0, 0]
            found = statistics.moments(i)
            np.testing.assert_allclose(found.conditional_variance()[c], variance, rtol=1e-4)
            np.testing.assert_allclose(found.mean[:, c], [eps_hat[:, c].mean(), delta[:, c].mean()], atol=1e-6)
    about = statistics.provenance
    assert (about.path, about.runs, about.seeds) == ("flow" if family == "sd3" else "ve", 2, (11, 12))
    assert "float8_e4m3fn" in about.quantization and about.full_digest != about.quantized_digest
    assert about.latent_format and about.torch and about.comfyui and about.device and about.attention and about.gimbal
    from gimbal.calibration.statistics import QDriftStatistics

    assert_same(QDriftStatistics.load(path), statistics)


@pytest.mark.parametrize("sampler", ["euler", "dpmpp_2m", "heun", "dpm_2", "uni_pc", "euler_ancestral", "dpmpp_sde"])
def test_one_evaluation_a_call(tiny, twin, calibrate, sampler):
    """At most 1.05 times a calibration's own evaluations: in fact exactly those, for each model."""
    plain, wanted = counted(tiny.model("sd3"))
    for seed in (11, 12):
        tiny.sample(plain, "sd3", sampler=sampler, seed=seed)
    (full, first), (quantized, second) = counted(tiny.model("sd3")), counted(twin("sd3"))
    statistics, *_ = calibrate(full_model=full, quantized_model=quantized, sampler_name=sampler)
    wanted = list(wanted)
    assert list(first) == wanted and list(second) == wanted
    assert statistics.sigma.tolist() == sorted({sigma for sigma in wanted if sigma > 0}, reverse=True)
    calls = wanted[: len(wanted) // 2]
    positions = tiny.latent("sd3")[:, 0].numel()
    for sigma, count in zip(statistics.sigma.tolist(), statistics.count.tolist(), strict=True):
        assert count == 2 * positions * calls.count(sigma)


def test_modes_agree_bit_for_bit(calibrate):
    passes, _, one, *_ = calibrate(mode="two passes", runs=3)
    turns, _, other, *_ = calibrate(mode="interleaved", runs=3)
    assert_same(passes, turns)
    assert one == other, "the same runs, so the same file"


@pytest.mark.parametrize("after", [5, 9])
def test_a_cancelled_first_half_loses_one_run(tiny, calibrate, folders, after):
    undisturbed, _, path, *_ = calibrate(runs=4)
    os.unlink(path)
    full, calls = cancelling(tiny.model("sd3"), after=after)
    with pytest.raises(Cancelled):
        calibrate(runs=4, full_model=full)
    whole = (after - 1) // 3
    assert len(kept(folders)[0]) == whole and not list(folders.rglob("*.safetensors"))
    calls.clear()
    assert_same(calibrate(runs=4, full_model=full)[0], undisturbed)
    assert len(calls) == 3 * (4 - whole), "finished runs are taken over"
    assert not list(folders.rglob("*.partial"))


@pytest.mark.parametrize("damage", ["cut", "bit", "other"])
def test_a_damaged_full_precision_run_is_recorded_again(tiny, twin, calibrate, folders, damage, caplog):
    undisturbed, _, path, *_ = calibrate()
    os.unlink(path)
    full, calls = cancelling(tiny.model("sd3"), after=6)
    with pytest.raises(Cancelled):
        calibrate(full_model=full)
    ((path,), _) = kept(folders)
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes({"cut": bytes(data[:100]), "bit": bytes(data), "other": b"other"}[damage])
    calls.clear()
    assert_same(calibrate(full_model=full)[0], undisturbed)
    assert len(calls) == 6 and f"{path}: " in caplog.text


def test_a_folder_that_cannot_be_written_to_is_noticed_first(tiny, calibrate, folders, monkeypatch):
    full, calls = counted(tiny.model("sd3"))
    folders.parent.mkdir(parents=True, exist_ok=True)
    folders.write_bytes(b"in the way")
    with pytest.raises(ValueError, match=r"Q-Drift Calibrate: .*qdrift cannot be written to .*extra_model_paths"):
        calibrate(full_model=full)
    folders.unlink()
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 9, 1))
    with pytest.raises(ValueError, match=r"has 0\.0 GiB left, and full precision's runs need .*; free some space"):
        calibrate(full_model=full)
    assert not calls


def test_what_cancelled_calibrations_leave_is_bounded(calibrate, folders, monkeypatch):
    from gimbal.host import qdrift_folder

    for age, name in ((3, "old"), (2, "older_than_a_day"), (0, "new")):
        place = folders / ".resume" / f"full_{name}" / "run.partial"
        place.parent.mkdir(parents=True)
        place.write_bytes(bytes(1000))
        then = time.time() - age * 24 * 3600
        os.utime(place, (then, then))
    calibrate()
    left = sorted(path.name for path in (folders / ".resume").iterdir())
    assert left == ["full_new", "full_old", "full_older_than_a_day"]
    monkeypatch.setattr(qdrift_folder, "KEPT_BYTES", 2500)
    calibrate()
    assert sorted(path.name for path in (folders / ".resume").iterdir()) == ["full_new", "full_older_than_a_day"]
    monkeypatch.setattr(qdrift_folder, "KEPT_BYTES", 0)
    calibrate()
    assert [path.name for path in (folders / ".resume").iterdir()] == ["full_new"]


def test_time_left_is_told(calibrate, caplog):
    from gimbal.host.calibrating.recording import duration

    caplog.set_level("INFO")
    calibrate(runs=2)
    assert "run 1 of 2: recording." in caplog.text and re.search(
        r"run 2 of 2: recording, about \d+ s left", caplog.text
    )
    assert [duration(s) for s in (0.2, 61, 601, 7300)] == [
        "about 1 s",
        "about 61 s",
        "about 10 min",
        "about 2 h 2 min",
    ]


def test_one_step_and_batches_and_video(calibrate, tiny):
    statistics, *_ = calibrate(steps=1, runs=1)
    assert len(statistics.sigma) == 1
    statistics, *_ = calibrate(latent={"samples": tiny.latent("sd3", batch=3, grow=4)}, runs=1)
    assert statistics.count.tolist() == [3 * 20 * 16] * 3
    statistics, *_ = calibrate("wan", runs=1)
    assert statistics.channels == 16 and statistics.count.tolist() == [2 * 16 * 16] * 3


def test_given_sigmas_and_no_guidance(calibrate):
    sigmas = torch.tensor([1.0, 0.6, 0.2])
    statistics, *_ = calibrate(sigmas=sigmas, cfg=1.0, negative=None)
    assert statistics.sigma.tolist() == pytest.approx([1.0, 0.6])
    assert statistics.provenance.scheduler == "given sigmas" and statistics.provenance.steps == 2


class Clip:
    def __init__(self, tiny):
        self.tiny, self.encoded = tiny, []

    def tokenize(self, text):
        return text

    def encode_from_tokens_scheduled(self, text):
        self.encoded.append(text)
        return self.tiny.conditioning("sd3", seed=len(text))[0]


def test_prompts_are_taken_in_turn(calibrate, tiny):
    clip = Clip(tiny)
    given = {"positive": None, "negative": None, "clip": clip, "prompts": "a\n\nbbb \n", "negative_prompt": "cc"}
    statistics, *_ = calibrate(runs=3, **given)
    assert clip.encoded == ["cc", "a", "bbb"]
    prompts = [source.split()[0] for source in statistics.provenance.sources]
    assert prompts[0] == prompts[2] != prompts[1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompts": "a"}, "positive and prompts are both given"),
        ({"positive": None, "negative": None}, "positive and prompts are both missing"),
        ({"positive": None, "negative": None, "prompts": "a"}, "clip is missing"),
        ({"negative": None}, "negative is missing at cfg 3"),
        ({"sigmas": torch.tensor([0.2, 0.6])}, "falling noise levels"),
        ({"sigmas": torch.tensor([0.2])}, "falling noise levels"),
        ({"latent": {"samples": torch.ones(1, 4, 16, 16)}}, "latent has 4 channels, the model 16"),
        ({"latent": {"samples": torch.zeros(1, 16, 16, 16), "noise_mask": torch.ones(1, 16, 16)}}, "noise mask"),
        ({"trim": 1e-9}, "trim"),
    ],
)
def test_inputs_are_refused_in_words(calibrate, changes, message):
    with pytest.raises(ValueError, match=message):
        calibrate(**changes)


def test_packed_latents_are_refused(calibrate):
    nested = pytest.importorskip("comfy.nested_tensor").NestedTensor([torch.zeros(1, 16, 8, 8), torch.zeros(1, 8, 9)])
    with pytest.raises(ValueError, match="latent packs several parts"):
        calibrate(latent={"samples": nested})


def test_other_models_are_refused(comfy, tiny, twin, calibrate):
    from comfy_extras.nodes_model_advanced import ModelSamplingDiscrete, ModelSamplingSD3

    with pytest.raises(ValueError, match="quantized_model differ in latent channels"):
        calibrate(quantized_model=tiny.model("sd15"))
    with pytest.raises(ValueError, match="differ in latent format"):
        calibrate(quantized_model=tiny.model("wan"))
    with pytest.raises(ValueError, match=r"differ in prediction type \(EPS and V_PREDICTION\)"):
        patched = ModelSamplingDiscrete().patch(twin("sd15"), "v_prediction", False)[0]
        calibrate("sd15", quantized_model=patched)
    with pytest.raises(ValueError, match="differ in their range of sigma"):
        calibrate(quantized_model=ModelSamplingSD3().patch(twin("sd3"), 9.0)[0])
    x0 = ModelSamplingDiscrete().patch(tiny.model("sd15"), "x0", False)[0]
    assert x0.get_model_object("model_sampling") is not None
    sampling = type("Odd", (comfy.model_sampling.ModelSamplingDiscrete, comfy.model_sampling.IMG_TO_IMG), {})
    odd = tiny.model("sd15")
    odd.add_object_patch("model_sampling", sampling(odd.model.model_config))
    with pytest.raises(ValueError, match=r"full_model.*IMG_TO_IMG.*not known"):
        calibrate("sd15", full_model=odd)


def test_the_same_model_is_refused_at_once(tiny, calibrate):
    full, calls = counted(tiny.model("sd3"))
    with pytest.raises(ValueError, match="full_model and quantized_model are the same model"):
        calibrate(full_model=full, quantized_model=full)
    assert not calls


def test_an_error_of_zero_is_refused_after_one_run(tiny, calibrate, folders):
    """Models that are the same in another guise."""
    quantized, calls = counted(tiny.model("sd3"))
    with pytest.raises(ValueError, match=r"after run 1 \(seed 11\) the error is exactly 0"):
        calibrate(quantized_model=quantized)
    assert len(calls) == 3
    assert not list(folders.rglob("*.safetensors")) and not kept(folders)[1]


def test_an_absurd_error_is_refused_after_one_run(tiny, calibrate):
    other = tiny.model("sd3")
    key = "diffusion_model.final_layer.linear.weight"
    weight = other.model.diffusion_model.final_layer.linear.weight
    other.add_patches({key: ("diff", (torch.randn(weight.shape),))}, 1.0)
    with pytest.raises(ValueError, match=r"after run 1 .* cannot read"):
        calibrate(quantized_model=other)


def test_simulated_quantization_may_err_as_it_likes(tiny, calibrate, monkeypatch):
    """Nothing was misread there; and one network under both models is swapped rightly in both modes."""
    from gimbal.host.calibrating import measuring
    from gimbal.nodes.simulate_quantization import GimbalSimulateQuantization

    monkeypatch.setattr(measuring, "MAX_RELATIVE_ERROR", 0.0)
    with pytest.raises(ValueError, match="cannot read"):
        calibrate()
    full = tiny.model("sd3")
    how = {"weight_bits": "by preset", "activation_bits": "by preset", "group_size": 32, "rank": 0, "layers": "blocks"}
    quantized = GimbalSimulateQuantization.execute(full, preset="W3A4", **how).args[0]
    passes, turns = (calibrate(full_model=full, quantized_model=quantized, mode=mode)[0] for mode in MODES)
    assert_same(passes, turns)
    assert "simulated W3A4" in passes.provenance.quantization
    assert passes.provenance.full_digest == passes.provenance.quantized_digest, "of the weights, which are the same"


def test_nan_is_refused_and_named(tiny, twin, calibrate):
    def broken(args):
        return args["denoised"] * float("nan")

    for name, words in (("full_model", "full-precision model"), ("quantized_model", "quantized model")):
        model = tiny.model("sd3") if name == "full_model" else twin("sd3")
        model.set_model_sampler_post_cfg_function(broken)
        with pytest.raises(ValueError, match=f"the {words} predicts NaN or infinity at sigma 1, seed 11"):
            calibrate(**{name: model})


@pytest.mark.parametrize("input_name", ["full_model", "quantized_model"])
def test_caches_compilers_and_our_own_stages_are_refused(tiny, twin, calibrate, input_name, monkeypatch):
    from comfy_extras import nodes_easycache, nodes_torch_compile

    from gimbal.nodes.confidence import GimbalConfidence
    from gimbal.nodes.micrograin import GimbalMicrograin

    def fresh():
        return tiny.model("sd3") if input_name == "full_model" else twin("sd3")

    easy = nodes_easycache.EasyCacheNode.execute(fresh(), 0.2, 0.15, 0.95, False).args[0]
    lazy = nodes_easycache.LazyCacheNode.execute(fresh(), 0.2, 0.15, 0.95, False).args[0]
    tea = fresh()
    tea.model_options["transformer_options"]["rel_l1_thresh"] = 0.4
    for cached in (easy, lazy, tea):
        with pytest.raises(ValueError, match=f"{input_name} carries a step cache"):
            calibrate(**{input_name: cached})
    monkeypatch.setattr(torch, "compile", lambda model, **_: model)
    compiled = nodes_torch_compile.TorchCompileModel.execute(fresh(), "inductor").args[0]
    with pytest.raises(ValueError, match=f"{input_name} is compiled"):
        calibrate(**{input_name: compiled})
    clamp = GimbalMicrograin.execute(fresh(), form="hard", q_low=0.01, q_high=0.99, strength=1.0, start_percent=0.0,
                                     end_percent=1.0, knee=0.5, alpha=2.0).args[0]  # fmt: skip
    with pytest.raises(ValueError, match=rf"{input_name} carries Micrograin \(QSilk\)"):
        calibrate(**{input_name: clamp})
    watched = GimbalConfidence.execute(fresh(), 0.0, 1.0, confidence="gradient", tile=8, stride=4).args[0]
    assert calibrate(**{input_name: watched})[0].provenance.runs == 2


def test_samplers_that_choose_their_own_levels_are_refused(calibrate):
    with pytest.raises(ValueError, match="dpm_adaptive chooses its own noise levels"):
        calibrate(sampler_name="dpm_adaptive", sigmas=torch.tensor([0.9, 0.8]))


def test_files_are_numbered_and_names_kept_inside(calibrate, folders):
    from gimbal.host.qdrift_folder import save

    statistics, _, first, *_ = calibrate(filename="my cal")
    assert calibrate(filename="my cal")[2] == first
    second = calibrate(filename="my cal", first_seed=5)[2]
    assert [os.path.basename(path) for path in (first, second)] == ["my cal.safetensors", "my cal_2.safetensors"]
    for name in ("../../escape", "/etc/passwd", "a/../../b", "..", "", "con", "nul.safetensors", "x" * 300, "c:\\d"):
        path = save(statistics, name)
        assert path.parent == folders and path.is_file(), name
        path.unlink()


def test_lora_names_and_patches_count(tiny, twin, calibrate):
    """A LoRA on one side alone is another model; the digest does not depend on whether it is loaded."""
    from gimbal.host import identity

    model = twin("sd3")
    plain = identity.weights_digest(model)
    key = "diffusion_model.final_layer.linear.weight"
    weight = model.model.diffusion_model.final_layer.linear.weight
    model.add_patches({key: ("diff", (0.01 * torch.ones(weight.shape),))}, 0.5)
    patched = identity.weights_digest(model)
    assert patched != plain
    tiny.sample(model, "sd3")
    assert identity.weights_digest(model) == patched
    prompt = {
        "1": {"inputs": {"unet_name": "sub/base.safetensors"}},
        "2": {"inputs": {"lora_name": "style.safetensors", "model": ["1", 0]}},
        "3": {"inputs": {"quantized_model": ["2", 0]}},
    }
    assert identity.model_name(model, prompt, "3", "quantized_model") == "base.safetensors + style.safetensors"
    # Newer ComfyUIs remember which file a model is of.
    assert identity.model_name(model, None, None, "quantized_model") in ("SD3", "sd3.safetensors")


@pytest.mark.parametrize("mode", MODES)
def test_a_cancelled_calibration_goes_on(tiny, twin, calibrate, mode, folders):
    undisturbed, _, path, *_ = calibrate(runs=4, mode=mode)
    os.unlink(path)
    quantized, calls = cancelling(twin("sd3"), after=8)  # in the third run
    with pytest.raises(Cancelled):
        calibrate(runs=4, mode=mode, quantized_model=quantized)
    full, measured = kept(folders)
    assert len(measured) == 2 and len(full) == (4 if mode == MODES[0] else 0)
    assert not list(folders.rglob("*.safetensors"))
    calls.clear()
    statistics, *_ = calibrate(runs=4, mode=mode, quantized_model=quantized)
    assert_same(statistics, undisturbed)
    assert len(calls) == 2 * 3, "two runs were left to measure"
    assert not list(folders.rglob("*.partial"))


def test_interrupt_is_noticed_within_a_call(comfy, tiny, calibrate):
    import comfy.model_management as management

    full, calls = counted(tiny.model("sd3"))
    management.interrupt_current_processing(True)
    with pytest.raises(management.InterruptProcessingException):
        calibrate(full_model=full)
    assert not calls
    assert not management.interrupt_processing


def test_progress_is_one_bar(comfy, calibrate, monkeypatch):
    import comfy.utils

    seen = []
    monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_HOOK", lambda value, total, *_, **__: seen.append((value, total)))
    for limit in ("INTERVAL", "PERCENT"):  # newer ComfyUIs leave out what comes too fast
        monkeypatch.setattr(comfy.utils, f"PROGRESS_THROTTLE_MIN_{limit}", 0.0, raising=False)
    calibrate(runs=2, sampler_name="heun")
    assert {total for _, total in seen} == {2 * 2 * 3}
    values = [value for value, _ in seen]
    assert values == sorted(values) and values[-1] == 12 and set(values) >= {1, 2, 4, 5, 6, 7, 11, 12}


def telling(model, pipe):
    """A clone that writes a byte to a pipe at each prediction."""
    from comfy.patcher_extension import WrappersMP

    def tell(executor, *args, **kwargs):
        os.write(pipe, b".")
        return executor(*args, **kwargs)

    clone = model.clone()
    clone.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, "tell", tell)
    return clone


def test_killed_at_ten_random_points(tiny, twin, calibrate, folders):
    """A real process, killed without warning; the next one ends with the very numbers of an undisturbed run."""
    given = {"runs": 4, "steps": 3}
    calls = 2 * given["runs"] * given["steps"]
    undisturbed, _, path, *_ = calibrate(**given)
    os.unlink(path)
    dice = random.Random(1)
    resumed = 0
    for trial in range(10):
        ear, mouth = os.pipe()
        given |= {
            "mode": MODES[trial % 2],
            "full_model": telling(tiny.model("sd3"), mouth),
            "quantized_model": telling(twin("sd3"), mouth),
        }
        child = os.fork()
        if child == 0:
            try:
                calibrate(**given)
            finally:
                os._exit(0)
        for _ in range(dice.randint(1, calls)):
            assert os.read(ear, 1) == b"."
        time.sleep(dice.uniform(0, 0.02))  # anywhere in that call, or in what follows it
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        for file in folders.glob("*.safetensors"):  # it had finished
            file.unlink()
        recorded, measured = kept(folders)
        resumed += bool(recorded or measured)
        os.set_blocking(ear, False)
        with contextlib.suppress(BlockingIOError):
            os.read(ear, 1000)
        statistics, _, path, *_ = calibrate(**given)
        left = given["runs"] - len(measured)
        to_record = left - len({path.name for path in recorded} - {path.name for path in measured})
        assert len(os.read(ear, 1000)) == (left + to_record) * given["steps"], "what had been finished was taken over"
        assert_same(statistics, undisturbed)
        os.unlink(path)
        assert not list(folders.rglob("*.partial"))
        os.close(ear)
        os.close(mouth)
    assert resumed >= 3, "hardly any trial left something to go on from"


@pytest.mark.parametrize("damage", ["cut", "bit"])
def test_a_broken_partial_file_is_measured_again(twin, calibrate, folders, damage, caplog):
    undisturbed, *_ = calibrate()
    quantized, calls = cancelling(twin("sd3"), after=5)
    with pytest.raises(Cancelled):
        calibrate(quantized_model=quantized)
    _, (partial,) = kept(folders)
    data = bytearray(partial.read_bytes())
    data[-5] ^= 1
    partial.write_bytes(data[:100] if damage == "cut" else data)
    calls.clear()
    assert_same(calibrate(quantized_model=quantized)[0], undisturbed)
    assert len(calls) == 6 and f"delete the folder {partial.parent}" in caplog.text


@pytest.mark.parametrize("family", ["sd3", "sd15"])
def test_split_pair_equals_the_whole(tiny, twin, calibrate, family):
    whole, *_ = calibrate(family)
    path = record(tiny, twin, family=family)
    from gimbal.host.qdrift_folder import trajectory_names
    from gimbal.nodes.qdrift_files import GimbalQDriftLoad

    assert trajectory_names() == ["t"] == [os.path.basename(path)]
    split, *_ = calibrate_from(tiny, twin, "t", family=family)
    assert_same(split, whole)
    assert split.provenance.to_metadata() == whole.provenance.to_metadata()
    assert GimbalQDriftLoad.define_schema().inputs[0].options == ["test.safetensors"]


def test_split_pair_refuses_what_does_not_fit(tiny, twin, folders):
    record(tiny, twin)
    with pytest.raises(ValueError, match="positive, negative or prompts are not those of the trajectory 't'"):
        calibrate_from(tiny, twin, "t", positive=tiny.conditioning("sd3", seed=9)[0])
    with pytest.raises(ValueError, match="the recorded model and quantized_model differ in latent channels"):
        calibrate_from(tiny, twin, "t", quantized_model=twin("sd15"))
    for name in ("../t", "u"):
        with pytest.raises(ValueError, match="holds no"):
            calibrate_from(tiny, twin, name)
    with pytest.raises(ValueError, match="exactly 0"):
        calibrate_from(tiny, twin, "t", quantized_model=tiny.model("sd3"))
    next((folders / "trajectories" / "t").glob("run_*")).unlink()
    with pytest.raises(ValueError, match=r"lacks runs \[\d\] of 2"):
        calibrate_from(tiny, twin, "t")


def test_recording_goes_on_and_does_not_overwrite(tiny, twin, folders):
    full, _ = cancelling(tiny.model("sd3"), after=5)
    with pytest.raises(Cancelled):
        record(tiny, twin, full_model=full)
    assert len(list(folders.rglob("run_*.safetensors"))) == 2, "a run, and its layers' means"
    assert record(tiny, twin, full_model=full).endswith("trajectories/t")
    again, calls = counted(tiny.model("sd3"))
    assert record(tiny, twin, full_model=again).endswith("t_2") and len(calls) == 6
    assert record(tiny, twin, full_model=again).endswith("t_2") and len(calls) == 6
    assert record(tiny, twin, full_model=again, first_seed=50).endswith("t_3") and len(calls) == 12
