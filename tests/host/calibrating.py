"""What tests of calibration share: a folder of their own, quantized twins, ways to count, to cancel and to compare."""

import itertools
from collections import deque

import pytest
import torch


@pytest.fixture
def folders(comfy, tmp_path, monkeypatch):
    """models/qdrift and temp of this test alone."""
    import folder_paths

    monkeypatch.setattr(folder_paths, "models_dir", str(tmp_path / "models"))
    monkeypatch.setattr(folder_paths, "temp_directory", str(tmp_path / "temp"))
    (tmp_path / "temp").mkdir()
    kept = folder_paths.folder_names_and_paths.pop("qdrift", None)
    folder_paths.filename_list_cache.pop("qdrift", None)
    yield tmp_path / "models" / "qdrift"
    folder_paths.filename_list_cache.pop("qdrift", None)
    folder_paths.folder_names_and_paths.pop("qdrift", None)
    if kept is not None:
        folder_paths.folder_names_and_paths["qdrift"] = kept


@pytest.fixture(scope="session")
def twin(tiny, comfy):
    """`twin(family)`: the same file, loaded with fp8 weights as "Load Diffusion Model" does."""
    loaded = {}

    def twin(family, dtype=torch.float8_e4m3fn):
        if (family, dtype) not in loaded:
            tiny.model(family)
            path = str(tiny.folder / f"{family}.safetensors")
            loaded[family, dtype] = comfy.sd.load_diffusion_model(path, model_options={"dtype": dtype})
        return loaded[family, dtype].clone()

    return twin


@pytest.fixture
def calibrate(tiny, twin):
    def calibrate(family="sd3", **changes):
        from gimbal.nodes.qdrift_calibrate import GimbalQDriftCalibrate

        return GimbalQDriftCalibrate.execute(**options(tiny, twin, family, **changes)).args

    return calibrate


def options(tiny, twin, family="sd3", **changes):
    positive, negative = tiny.conditioning(family)
    given = {
        "full_model": tiny.model(family) if "full_model" not in changes else None,
        "quantized_model": twin(family) if "quantized_model" not in changes else None,
        "latent": {"samples": tiny.latent(family)},
        "cfg": 3.0,
        "sampler_name": "euler",
        "scheduler": "simple",
        "steps": 3,
        "runs": 2,
        "first_seed": 11,
        "held_out": 0,
        "prompts": "",
        "negative_prompt": "",
        "positive": positive,
        "negative": negative,
        "correction": "drift",
        "mode": "two passes",
        "trim": 0.0,
        "filename": "test",
    }
    return {**given, **changes}


def tensors(statistics):
    names = ("sigma", "count", "mean", "m2", "run_variance")
    return {name: getattr(statistics, name) for name in names}


def assert_same(one, other):
    for name, value in tensors(one).items():
        assert torch.equal(value, tensors(other)[name]), name


def counted(model):
    """A clone that notes its guided predictions."""
    from comfy.patcher_extension import WrappersMP

    calls = deque()  # whose contents are no part of what the model predicts, to the digest either

    def count(executor, x, timestep, *args, **kwargs):
        calls.append(float(timestep.flatten()[0]))
        return executor(x, timestep, *args, **kwargs)

    clone = model.clone()
    clone.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, "count", count)
    return clone, calls


def evaluate(comfy, model, x, sigma, positive, negative, cfg):
    """One guided prediction at x, by a sampler that calls the model once."""
    found = []

    def once(denoise, noise, sigmas, extra_args=None, callback=None, disable=None):
        found.append(denoise(x, sigmas[:1] * x.new_ones(x.shape[0]), **extra_args))
        return noise

    schedule = torch.tensor([sigma, 0.0])
    noise, latent = torch.zeros_like(x), torch.zeros_like(x)
    sampler = comfy.samplers.KSAMPLER(once)
    comfy.sample.sample_custom(model, noise, cfg, sampler, schedule, positive, negative, latent, disable_pbar=True)
    return found[0]


class Cancelled(Exception):
    pass


def cancelling(model, after):
    """A clone that stops in the given prediction, as Cancel does, and then lets the rest pass."""
    from comfy.patcher_extension import WrappersMP

    calls, number = deque(), itertools.count(1)

    def count(executor, *args, **kwargs):
        calls.append(1)
        if next(number) == after:
            raise Cancelled
        return executor(*args, **kwargs)

    clone = model.clone()
    clone.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, "cancel", count)
    return clone, calls


def record(tiny, twin, **changes):
    from gimbal.nodes.qdrift_trajectory import GimbalQDriftRecord

    given = options(tiny, twin, **changes)
    for name in ("quantized_model", "correction", "mode", "trim", "filename"):
        del given[name]
    return GimbalQDriftRecord.execute(**given, name="t").args[0]


def calibrate_from(tiny, twin, trajectory, **changes):
    from gimbal.nodes.qdrift_trajectory import GimbalQDriftCalibrateFrom

    given = options(tiny, twin, **changes)
    names = ("quantized_model", "prompts", "negative_prompt", "positive", "negative", "correction", "trim", "filename")
    return GimbalQDriftCalibrateFrom.execute(trajectory=trajectory, **{name: given[name] for name in names}).args
