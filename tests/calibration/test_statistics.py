"""The statistics file: exact round trips, whole or not at all, and one clear error for each bad file."""

import dataclasses
import json
import math
import os
import re
import struct

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gimbal.calibration import files
from gimbal.calibration.moments import JointMoments
from gimbal.calibration.provenance import Provenance
from gimbal.calibration.statistics import QDriftStatistics
from gimbal.calibration.trial import Trial

SIGMAS = [14.6, 3.0, 0.5, 0.03]
CHANNELS = 3


def provenance(seeds=(1, 2), **changes):
    given = {
        "path": "ve",
        "latent_channels": CHANNELS,
        "latent_format": "SDXL",
        "cfg": 4.5,
        "steps": len(SIGMAS),
        "runs": len(seeds),
        "seeds": tuple(seeds),
        "solver": "euler",
        "scheduler": "karras",
        "prompt_digest": "5eed",
        "full_model": "base.safetensors",
        "full_digest": "aa",
        "quantized_model": "base_w4a4.safetensors",
        "quantized_digest": "bb",
        "quantization": "svdquant int4",
        "date": "2026-03-01",
    }
    return Provenance(**{**given, **changes})


def run_moments(seed, error=0.3):
    """One run: for each sigma the moments of a small random latent."""
    generator = torch.Generator().manual_seed(seed)
    each = []
    for level in range(len(SIGMAS)):
        eps_hat = torch.randn(1, CHANNELS, 6, 6, generator=generator)
        noise = torch.randn(1, CHANNELS, 6, 6, generator=generator)
        moments = JointMoments(CHANNELS)
        moments.update(eps_hat, error * (1 + level) / 4 * (noise + 0.5 * eps_hat + 0.1))
        each.append(moments)
    return each


def state_map():
    generator = torch.Generator().manual_seed(9)
    return [3.0, 0.5, 0.03, 0.0], *(torch.rand(4, CHANNELS, generator=generator) for _ in range(2))


def statistics(seeds=(1, 2), state=True, error=0.3, **changes):
    runs = [run_moments(seed, error) for seed in seeds]
    return QDriftStatistics.from_runs(SIGMAS, runs, provenance(seeds, **changes), state_map() if state else None)


TENSORS = ("sigma", "count", "mean", "m2", "state_sigma", "state_scale", "state_shift", "run_variance")


def assert_same(found, expected):
    assert found.provenance == expected.provenance
    for name in TENSORS:
        ours, theirs = getattr(found, name), getattr(expected, name)
        assert (ours is None) == (theirs is None), name
        if ours is not None:
            assert ours.dtype == theirs.dtype and torch.equal(ours, theirs), name


def test_runs_are_merged_and_kept_apart_as_variances():
    found = statistics((1, 2))
    for i in range(len(SIGMAS)):
        first, second = run_moments(1)[i], run_moments(2)[i]
        assert torch.equal(found.moments(i).m2, first.merge(second).m2)
        assert found.count[i] == 72
        assert torch.equal(found.run_variance[1, i], second.conditional_variance().float())
    assert found.run_variance.shape == (2, 4, 3) and found.channels == 3


@pytest.mark.parametrize("runs", [[], [run_moments(1)[:3]]])
def test_each_run_has_moments_at_each_sigma(runs):
    with pytest.raises(ValueError, match=r"from_runs: runs have .* moments for 4 sigmas"):
        QDriftStatistics.from_runs(SIGMAS, runs, provenance())


# Interpolation


def row(found, index, read=JointMoments.conditional_variance):
    return read(found.moments(index)).float()


def test_at_a_calibrated_sigma_it_is_what_was_found():
    found = statistics()
    for i, sigma in enumerate(SIGMAS):
        assert torch.equal(found.variance(sigma), row(found, i))
        unconditional = row(found, i, JointMoments.unconditional_variance)
        assert torch.equal(found.variance(sigma, kind="unconditional"), unconditional)
        assert torch.equal(found.slope(sigma), row(found, i, JointMoments.slope))
        assert torch.equal(found.intercept(sigma), row(found, i, JointMoments.intercept))
        pooled = found.moments(i).pooled()
        assert found.variance(sigma, "scalar").tolist() == [pytest.approx(pooled.conditional_variance().item())] * 3
        assert found.slope(sigma, "scalar").tolist() == [pytest.approx(pooled.slope().item())] * 3
    assert found.variance(3.0).dtype == torch.float32


@pytest.mark.parametrize("between", range(3))
@pytest.mark.parametrize("share", [0.25, 0.5, 0.9])
def test_between_it_is_linear_in_log_sigma(between, share):
    found = statistics()
    high, low = SIGMAS[between], SIGMAS[between + 1]
    sigma = high ** (1 - share) * low**share
    expected = (1 - share) * row(found, between) + share * row(found, between + 1)
    assert found.variance(sigma).numpy() == pytest.approx(expected.numpy(), rel=1e-5)


def test_beyond_the_calibrated_range_it_is_held():
    found = statistics()
    for sigma in (15.0, 1e9, math.inf):
        assert torch.equal(found.variance(sigma), row(found, 0))
    for sigma in (0.029, 1e-9, 0.0):
        assert torch.equal(found.variance(sigma), row(found, 3))


def test_one_sigma_is_enough():
    one = QDriftStatistics.from_runs([1.0], [run_moments(1)[:1]], provenance((1,)))
    for sigma in (0.0, 0.5, 1.0, 2.0):
        assert torch.equal(one.variance(sigma), row(one, 0))


@pytest.mark.parametrize("sigma", [-1.0, float("nan")])
def test_a_noise_level_is_not_negative(sigma):
    found = statistics()
    for read in (found.variance, found.slope):
        with pytest.raises(ValueError, match=r"QDriftStatistics\.\w+: sigma is .*; pass a noise level"):
            read(sigma)


def test_unknown_options():
    with pytest.raises(ValueError, match=r"QDriftStatistics\.variance: kind is 'both'; pass one of conditional"):
        statistics().variance(1.0, kind="both")
    with pytest.raises(ValueError, match=r"QDriftStatistics\.slope: channels is 'all'; pass channel or scalar"):
        statistics().slope(1.0, "all")


# The file


@pytest.mark.parametrize("state", [True, False])
def test_saved_and_loaded_it_is_the_same_to_the_bit(state, tmp_path):
    before = statistics(state=state, cfg=1 / 3, quantization="two\nlines, and \u00e4", seeds=(0, 2**64 - 1))
    before.save(tmp_path / "s.safetensors")
    assert_same(QDriftStatistics.load(str(tmp_path / "s.safetensors")), before)
    assert os.listdir(tmp_path) == ["s.safetensors"]


def test_the_file_is_as_designed(tmp_path):
    found = statistics()
    found.save(tmp_path / "s.safetensors")
    with safetensors.safe_open(tmp_path / "s.safetensors", framework="numpy") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        metadata = file.metadata()
    assert {name: (t.dtype.name, t.shape) for name, t in tensors.items()} == {
        "sigma": ("float64", (4,)),
        "count": ("int64", (4,)),
        "mean": ("float64", (4, 2, 3)),
        "m2": ("float64", (4, 3, 3)),
        "variance": ("float32", (4, 3)),
        "state_sigma": ("float64", (4,)),
        "state_scale": ("float32", (4, 3)),
        "state_shift": ("float32", (4, 3)),
        "run_variance": ("float32", (2, 4, 3)),
    }
    m2 = tensors["m2"]
    expected = (m2[:, 2] - m2[:, 1] ** 2 / m2[:, 0]) / tensors["count"][:, None]
    assert np.allclose(tensors["variance"], expected, rtol=1e-6)
    assert metadata["format"] == "gimbal.qdrift/1" and metadata["seeds"] == "1,2" and metadata["cfg"] == "4.5"
    assert metadata["quantized_digest"] == "bb" and set(metadata) >= {f.name for f in dataclasses.fields(Provenance)}


def test_what_is_loaded_does_not_hang_on_the_file(tmp_path):
    path = tmp_path / "s.safetensors"
    statistics().save(path)
    found = QDriftStatistics.load(path)
    path.write_bytes(b"\xff" * path.stat().st_size)
    assert torch.equal(found.m2, statistics().m2)


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_a_failing_write_leaves_what_was_there(failing, tmp_path, monkeypatch):
    path = tmp_path / "s.safetensors"
    statistics((1, 2)).save(path)
    before = path.read_bytes()

    def fail(*arguments):
        raise OSError("disk full")

    monkeypatch.setattr(os, failing, fail)
    with pytest.raises(OSError, match="disk full"):
        statistics((3, 4)).save(path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["s.safetensors"]


def test_the_file_is_complete_before_it_has_its_name(tmp_path, monkeypatch):
    steps = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda handle: (steps.append("fsync"), fsync(handle)))

    def watched(source, target):
        assert source.parent == target.parent == tmp_path and not target.exists()
        QDriftStatistics.load(source)
        steps.append("replace")
        replace(source, target)

    monkeypatch.setattr(os, "replace", watched)
    statistics().save(tmp_path / "s.safetensors")
    assert steps == ["fsync", "replace"]


def test_a_file_too_large_to_load_is_not_written(tmp_path):
    with pytest.raises(ValueError, match=r"s\.safetensors: its header has .* allowed; keep fewer"):
        statistics(quantization="x" * 2**20).save(tmp_path / "s.safetensors")
    assert not os.listdir(tmp_path)


def test_a_missing_file_is_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.safetensors"):
        QDriftStatistics.load(tmp_path / "none.safetensors")


def contents(tmp_path):
    path = tmp_path / "good.safetensors"
    statistics().save(path)
    with safetensors.safe_open(path, framework="pt") as file:
        return safetensors.torch.load(path.read_bytes()), unsealed(file.metadata())


def unsealed(metadata):
    """Without a checksum, as earlier versions and other programs write it."""
    return {name: text for name, text in metadata.items() if not name.startswith("checksum")}


def test_what_a_later_version_1_adds_is_ignored(tmp_path):
    tensors, metadata = contents(tmp_path)
    path = tmp_path / "more.safetensors"
    safetensors.torch.save_file({**tensors, "more": torch.zeros(1).bool()}, path, {**metadata, "more": "text"})
    assert_same(QDriftStatistics.load(path), statistics())


def test_what_is_optional_may_be_absent(tmp_path):
    tensors, metadata = contents(tmp_path)
    path = tmp_path / "less.safetensors"
    kept = {name: tensors[name] for name in ("sigma", "count", "mean", "m2", "variance")}
    needed = ("format", "path", "latent_channels", "latent_format", "cfg", "steps", "runs", "seeds")
    safetensors.torch.save_file(kept, path, {name: metadata[name] for name in needed})
    found = QDriftStatistics.load(path)
    assert found.run_variance is None and found.state_map() is None
    assert found.provenance.solver == "" and found.provenance.sources == ("1", "2")
    assert torch.equal(found.m2, statistics().m2)


def test_another_programs_rounding_of_the_variance_is_accepted(tmp_path):
    moments = JointMoments(CHANNELS)
    eps_hat = torch.randn(1, CHANNELS, 6, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    moments.update(eps_hat, 0.7 * eps_hat)  # all of it explained: the variance is rounding alone
    exact = QDriftStatistics.from_runs(SIGMAS, [[*run_moments(1)[:3], moments]], provenance((1,)))
    exact.save(tmp_path / "s.safetensors")
    with safetensors.safe_open(tmp_path / "s.safetensors", framework="pt") as file:
        metadata = unsealed(file.metadata())
    tensors = safetensors.torch.load_file(tmp_path / "s.safetensors")
    tensors["variance"] = (tensors["variance"] * (1 + 2e-7)).clamp(min=1e-13)
    assert not torch.equal(tensors["variance"], safetensors.torch.load_file(tmp_path / "s.safetensors")["variance"])
    safetensors.torch.save_file(tensors, tmp_path / "t.safetensors", metadata)
    assert_same(QDriftStatistics.load(tmp_path / "t.safetensors"), exact)


def changed(name, index, value):
    def change(tensors, metadata):
        tensors[name][index] = value

    return change


def replaced(name, make):
    def change(tensors, metadata):
        tensors[name] = make(tensors[name]).contiguous()

    return change


def without(*names):
    def change(tensors, metadata):
        for name in names:
            del tensors[name]

    return change


def labelled(name, text):
    def change(tensors, metadata):
        metadata[name] = text
        if text is None:
            del metadata[name]

    return change


ODD = "copy the file again, or calibrate again"
BAD_CONTENTS = {
    "no format": (labelled("format", None), "its format is None, not gimbal.qdrift/1"),
    "another format": (labelled("format", "pt"), "its format is 'pt'.* choose another file"),
    "a newer format": (labelled("format", "gimbal.qdrift/2"), r"gimbal\.qdrift/2 is newer .*update Gimbal"),
    "a version of many digits": (labelled("format", "gimbal.qdrift/" + "9" * 5000), "its format is 'gimbal.*choose"),
    "no path": (labelled("path", None), f"the metadata lacks path; {ODD}"),
    "another path": (labelled("path", "vp"), f"path is 'vp'; it must be ve or flow; {ODD}"),
    "cfg is no number": (labelled("cfg", "high"), f"cfg is 'high'; it must be a number; {ODD}"),
    "cfg is NaN": (labelled("cfg", "nan"), "cfg is nan; it must be a finite number"),
    "no channels": (labelled("latent_channels", None), f"latent_channels is '' in the metadata.*; {ODD}"),
    "other channels": (labelled("latent_channels", "16"), r"tensor mean has shape \(4, 2, 3\); .* 16"),
    "many channels": (labelled("latent_channels", "9" * 5000), "latent_channels is '9999.* not a whole number"),
    "steps are no number": (labelled("steps", "0x4"), "steps is '0x4'; it must be a whole number"),
    "no steps": (labelled("steps", "0"), "steps is 0; it must be a whole number of at least 1"),
    "no runs": (labelled("runs", "0"), "tensor run_variance has shape"),
    "seeds are no numbers": (labelled("seeds", "1,b"), "seeds is '1,b'; it must be whole numbers"),
    "a seed is missing": (labelled("seeds", "1"), r"seeds is \(1,\); it must be one .* of the 2 runs"),
    "a source is missing": (labelled("sources", "a"), "sources is .* of the 2 runs"),
    "sigma is missing": (without("sigma"), f"tensor sigma is missing; {ODD}"),
    "m2 is missing": (without("m2"), "tensor m2 is missing"),
    "variance is missing": (without("variance"), "tensor variance is missing"),
    "half a state map": (without("state_scale"), "state_scale is missing beside state_sigma, state_shift"),
    "sigma in float32": (replaced("sigma", lambda t: t.float()), "tensor sigma has dtype F32 instead of F64"),
    "count in float64": (replaced("count", lambda t: t.double()), "tensor count has dtype F64 instead of I64"),
    "m2 in bfloat16": (replaced("m2", lambda t: t.bfloat16()), "tensor m2 has dtype BF16 instead of F64"),
    "sigma is a table": (replaced("sigma", lambda t: t[:, None]), r"tensor sigma has shape \(4, 1\) instead of \(S\)"),
    "one count": (replaced("count", lambda t: t[:1]), r"tensor count has shape \(1,\); it should have 4"),
    "two sums": (replaced("m2", lambda t: t[:, :2]), r"tensor m2 has shape \(4, 2, 3\); it should have 3"),
    "one state shift": (replaced("state_shift", lambda t: t[:1]), "tensor state_shift has shape"),
    "no sigmas": (
        lambda tensors, metadata: tensors.update(
            {name: t[:, :0] if name == "run_variance" else t[:0] for name, t in list(tensors.items())}
        ),
        "it holds 0 sigmas, not 1 to 10000",
    ),
    "absurdly many sigmas": (
        lambda tensors, metadata: (
            without("run_variance")(tensors, metadata),
            tensors.update(
                sigma=torch.linspace(2, 1, 20000).double(),
                **{
                    name: tensors[name][:1].repeat(20000, *[1] * (tensors[name].ndim - 1))
                    for name in ("count", "mean", "m2", "variance")
                },
            ),
        ),
        "it holds 20000 sigmas, not 1 to 10000",
    ),
    "NaN sigma": (changed("sigma", 2, math.nan), f"tensor sigma holds NaN or infinity; {ODD}"),
    "infinite sigma": (changed("sigma", 0, math.inf), "tensor sigma holds NaN or infinity"),
    "sigma rises": (replaced("sigma", lambda t: t.flip(0)), "sigma is not positive and strictly decreasing"),
    "sigma twice": (changed("sigma", 1, 14.6), "sigma is not positive and strictly decreasing"),
    "sigma is 0": (changed("sigma", 3, 0.0), "sigma is not positive and strictly decreasing"),
    "count is 0": (changed("count", 1, 0), "count is not between 1 and"),
    "count is negative": (changed("count", 1, -5), "count is not between 1 and"),
    "count is huge": (changed("count", 1, 2**62), "count is not between 1 and"),
    "NaN mean": (changed("mean", (0, 1, 2), math.nan), "tensor mean holds NaN"),
    "infinite m2": (changed("m2", (3, 0, 0), math.inf), "tensor m2 holds NaN or infinity"),
    "mean is huge": (changed("mean", (0, 0, 0), -1e300), "tensor mean holds values beyond 1e\\+15"),
    "m2 is huge": (changed("m2", (3, 0, 0), 1e300), "tensor m2 gives deviations or slopes beyond 1e\\+15"),
    "slope is huge": (
        changed("m2", (0, slice(None), 0), torch.tensor([1e-300, 1e-150, 10.0], dtype=torch.float64)),
        "tensor m2 gives .* slopes",
    ),
    "eps_hat's m2 is negative": (changed("m2", (0, 0, 0), -1.0), "tensor m2 has a negative variance"),
    "delta's m2 is negative": (changed("m2", (0, 2, 0), -1.0), "tensor m2 has a negative variance"),
    "covariance is too large": (changed("m2", (0, 1, 0), 1e6), "Cauchy-Schwarz"),
    "covariance of a constant": (changed("m2", (0, 0, 0), 0.0), "Cauchy-Schwarz"),
    "variance is negative": (changed("variance", (0, 0), -1e-3), "tensor variance is negative"),
    "variance is NaN": (changed("variance", (0, 0), math.nan), "tensor variance holds NaN"),
    "variance is another": (replaced("variance", lambda t: t * 1.001), "not the conditional variance that follows"),
    "run variance is negative": (changed("run_variance", (0, 0, 0), -1.0), "tensor run_variance is negative"),
    "state scale is negative": (changed("state_scale", (0, 0), -1.0), "tensor state_scale is negative"),
    "state shift is NaN": (changed("state_shift", (0, 0), math.nan), "tensor state_shift holds NaN"),
    "state sigma rises": (changed("state_sigma", 0, 0.2), "state_sigma is not strictly decreasing"),
    "state sigma is negative": (changed("state_sigma", 3, -1.0), "state_sigma is not strictly decreasing"),
}


def refused(path):
    """The one-line message of the ValueError that loading ends in."""
    with pytest.raises(ValueError, match=r"\S") as caught:
        QDriftStatistics.load(path)
    message = str(caught.value)
    assert type(caught.value) is ValueError and message.startswith(f"{path}: ")
    assert "\n" not in message and len(message) < 500 + len(str(path))
    return message


@pytest.mark.parametrize("name", BAD_CONTENTS)
def test_a_file_of_bad_contents(name, tmp_path):
    change, message = BAD_CONTENTS[name]
    tensors, metadata = contents(tmp_path)
    change(tensors, metadata)
    path = tmp_path / "bad.safetensors"
    safetensors.torch.save_file(tensors, path, metadata)
    found = refused(path)
    assert re.search(message, found), found


def header(text, size=None):
    return struct.pack("<Q", len(text) if size is None else size) + text.encode()


def pickled(good):
    import io

    buffer = io.BytesIO()
    torch.save({"sigma": torch.ones(3)}, buffer)
    return buffer.getvalue()


def overlong(good):
    """A tensor of 2 TB that the file does not have."""
    size = struct.unpack("<Q", good[:8])[0]
    fields = json.loads(good[8 : 8 + size])
    fields["m2"] = {"dtype": "F64", "shape": [4, 3, 2**36], "data_offsets": [0, 4 * 3 * 8 * 2**36]}
    return header(json.dumps(fields)) + good[8 + size :]


BAD_BYTES = {
    "nothing": lambda good: b"",
    "seven bytes": lambda good: good[:7],
    "the header's length alone": lambda good: good[:8],
    "half a header": lambda good: good[:200],
    "one byte short": lambda good: good[:-1],
    "one byte long": lambda good: good + b"\0",
    "a 2 GB header": lambda good: struct.pack("<Q", 2**31) + good[8:],
    "the largest header": lambda good: b"\xff" * 8 + good[8:],
    "a header that is large and there": lambda good: header(" " * (2**20 + 1)),
    "an empty header": lambda good: header(""),
    "a header that is a list": lambda good: header("[]"),
    "a header without tensors": lambda good: header("{}"),
    "a header of brackets": lambda good: header("[" * 100_000),
    "a header that is no text": lambda good: struct.pack("<Q", 4) + b"\xff\xfe\xfd\xfc",
    "metadata that is no text": lambda good: header('{"__metadata__": {"format": 1}}'),
    "a tensor beyond the file": overlong,
    "a pickle": pickled,
    "a picture": lambda good: b"\x89PNG\r\n\x1a\n" + bytes(1000),
}


@pytest.mark.parametrize("name", BAD_BYTES)
def test_a_file_of_bad_bytes(name, tmp_path):
    statistics().save(tmp_path / "good")
    path = tmp_path / "bad.safetensors"
    path.write_bytes(BAD_BYTES[name]((tmp_path / "good").read_bytes()))
    assert refused(path).endswith((ODD + ".", "choose another file."))


def test_a_header_of_two_gigabytes_is_not_read(tmp_path, monkeypatch):
    path = tmp_path / "bad.safetensors"
    with path.open("wb") as file:
        file.write(struct.pack("<Q", 2**31))
        file.truncate(2**31 + 100)  # sparse: it takes no space
    monkeypatch.setattr(safetensors, "safe_open", None)
    assert "its header has 2147483648 bytes, more than" in refused(path)


def test_a_file_of_a_gigabyte_is_not_read(tmp_path, monkeypatch):
    statistics().save(tmp_path / "s.safetensors")
    os.truncate(tmp_path / "s.safetensors", 2**30)
    monkeypatch.setattr(safetensors, "safe_open", None)
    assert "it has 1073741824 bytes, more than" in refused(tmp_path / "s.safetensors")


def test_a_folder_is_no_file(tmp_path):
    assert "this is a folder" in refused(tmp_path)


@settings(max_examples=150, deadline=None)
@given(position=st.integers(0, 3000), value=st.integers(0, 255), seed=st.integers(0, 3))
def test_any_damaged_byte_is_refused_or_harmless(position, value, seed, tmp_path_factory):
    path = tmp_path_factory.mktemp("damaged") / "s.safetensors"
    statistics((1,), state=seed % 2 == 0).save(path)
    data = bytearray(path.read_bytes())
    data[position % len(data)] = value
    path.write_bytes(data)
    try:
        found = QDriftStatistics.load(path)
    except ValueError as error:
        assert str(path) in str(error)
    else:
        for read in (found.variance, found.slope, found.intercept):
            assert read(1.0).isfinite().all()
        assert all(found.moments(i).relative_error().isfinite().all() for i in range(4)) and found.describe()


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("sigma", None, "tensor sigma is missing"),
        ("sigma", torch.tensor([1.0, 2.0, 3.0, 4.0]).double(), "strictly decreasing"),
        ("count", torch.ones(4), "tensor count has dtype F32 instead of I64"),
        ("mean", torch.zeros(4, 2, 3).half(), r"tensor mean has dtype torch\.float16"),
        ("m2", torch.zeros(4, 3, 2).double(), "tensor m2 has shape"),
        (
            "m2",
            torch.tensor([1e60, 0, 1e60], dtype=torch.float64)[:, None].expand(4, 3, 3),
            "tensor variance holds NaN",
        ),
        ("state_scale", None, "state_scale is missing"),
    ],
)
def test_statistics_that_cannot_be(name, value, message):
    with pytest.raises(ValueError, match=f"QDriftStatistics: .*{message}.*; collect"):
        dataclasses.replace(statistics(), **{name: value})


# Merging


def test_merged_it_is_the_calibration_of_all_runs():
    merged = QDriftStatistics.merge(
        [statistics((1, 2), date="a"), statistics((3,), date="b"), statistics((4, 5), date="a")]
    )
    whole = statistics((1, 2, 3, 4, 5), state=False, date="a + b")
    assert merged.provenance == whole.provenance
    assert torch.equal(merged.count, whole.count)
    assert torch.equal(merged.run_variance, whole.run_variance)
    assert merged.mean.numpy() == pytest.approx(whole.mean.numpy(), rel=1e-10, abs=1e-12)
    assert merged.m2.numpy() == pytest.approx(whole.m2.numpy(), rel=1e-10)


def test_merged_in_steps_each_text_stands_once():
    merged = QDriftStatistics.merge([statistics((1,), date="a"), statistics((2,), date="b")])
    assert QDriftStatistics.merge([merged, statistics((3,), date="a")]).provenance.date == "a + b"


def test_merging_leaves_state_maps_out_and_one_part_alone():
    one = statistics()
    assert QDriftStatistics.merge([one]) is one
    merged = QDriftStatistics.merge([one, statistics((3,))])
    assert merged.state_map() is None
    unknown = dataclasses.replace(statistics((3,)), run_variance=None)
    assert QDriftStatistics.merge([one, unknown]).run_variance is None


def test_merged_it_can_be_saved_and_merged_again(tmp_path):
    merged = QDriftStatistics.merge([statistics((1, 2), prompt_digest="p"), statistics((1, 2), prompt_digest="q")])
    assert merged.provenance.seeds == (1, 2, 1, 2) and merged.provenance.prompt_digest == "p + q"
    merged.save(tmp_path / "m.safetensors")
    loaded = QDriftStatistics.load(tmp_path / "m.safetensors")
    assert_same(loaded, merged)
    assert QDriftStatistics.merge([loaded, statistics((3,), prompt_digest="p")]).provenance.runs == 5
    with pytest.raises(ValueError, match=r"merge: the run 'q euler 2' .* is in two of them; leave one out"):
        QDriftStatistics.merge([loaded, statistics((9, 2), prompt_digest="q")])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seeds": (2, 3)}, r"the run '5eed euler 2' \(prompts, solver, seed\) is in two"),
        ({"path": "flow"}, "path differs: 've' and 'flow'; merge calibrations of one setting"),
        ({"latent_format": "SD15"}, "latent_format differs: 'SDXL' and 'SD15'"),
        ({"cfg": 7.0}, r"cfg differs: 4\.5 and 7\.0"),
        ({"full_digest": "cc"}, "full_digest differs"),
        ({"quantized_digest": "cc"}, "quantized_digest differs"),
        ({"quantization": "fp8"}, "quantization differs: 'svdquant int4' and 'fp8'"),
        ({"trim": "4"}, "trim differs"),
    ],
)
def test_what_does_not_belong_together(changes, message):
    with pytest.raises(ValueError, match=rf"QDriftStatistics\.merge: {message}"):
        QDriftStatistics.merge([statistics(), statistics(**{"seeds": (3, 4), **changes})])


def resampled(sigmas):
    return QDriftStatistics.from_runs(sigmas, [run_moments(7)[: len(sigmas)]], provenance((7,)))


def test_sigmas_must_be_the_same_to_float32s_rounding():
    close = [float(np.float32(sigma)) for sigma in SIGMAS]
    merged = QDriftStatistics.merge([statistics(), resampled(close)])
    assert torch.equal(merged.sigma, statistics().sigma)
    for other in (SIGMAS[:3], [*SIGMAS[:3], 0.0301], [*SIGMAS[:3], 0.0299]):
        with pytest.raises(ValueError, match=r"merge: sigma differs: 4 sigmas from 14.6 to 0.03 and \d sigmas"):
            QDriftStatistics.merge([statistics(), resampled(other)])


def test_other_channels_are_not_merged():
    narrow = [JointMoments.from_parts(m.count, m.mean[:, :2], m.m2[:, :2]) for m in run_moments(3)]
    other = QDriftStatistics.from_runs(SIGMAS, [narrow], provenance((3,), latent_channels=2))
    with pytest.raises(ValueError, match="latent_channels differs: 3 and 2"):
        QDriftStatistics.merge([statistics(), other])


def test_nothing_to_merge():
    with pytest.raises(ValueError, match=r"QDriftStatistics\.merge: there is nothing to merge"):
        QDriftStatistics.merge([])


# Provenance


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"path": "eps"}, "path is 'eps'; it must be ve or flow"),
        ({"steps": 0}, "steps is 0; it must be a whole number"),
        ({"cfg": math.inf}, "cfg is inf"),
        ({"seeds": (1, 2.0)}, "seeds is"),
        ({"runs": 3}, r"seeds is \(1, 2\); it must be one whole number for each of the 3 runs"),
        ({"device": None}, "device is None; it must be text"),
        ({"sources": ("a", "b\nc")}, "sources is"),
    ],
)
def test_provenance_that_cannot_be(changes, message):
    with pytest.raises(ValueError, match=f"Provenance: {message}"):
        dataclasses.replace(provenance(), **changes)


def test_a_name_that_is_no_text_can_be_written(tmp_path):
    statistics(full_model="caf\udce9.safetensors").save(tmp_path / "s.safetensors")
    assert QDriftStatistics.load(tmp_path / "s.safetensors").provenance.full_model == "caf?.safetensors"


# In words


def of_relative_error(error, path="ve"):
    """One channel, one sigma: eps is 1 or -1, delta is +-error, independent."""
    eps = torch.tensor([[[1.0, 1, -1, -1]]]).double()
    delta = torch.tensor([[[error, -error, error, -error]]]).double()
    moments = JointMoments(1)
    moments.update(eps + delta, delta)
    given = provenance((1,), path=path, latent_channels=1)
    return QDriftStatistics.from_runs([1.0], [[moments]], given)


@pytest.mark.parametrize(
    ("error", "path", "message"),
    [
        (0.0, "ve", "The error is exactly 0: the two models are the same"),
        (0.003, "ve", r"The error is 0\.3 % of the signal: expect no visible change\."),
        (0.00001, "ve", r"The error is less than 0\.01 % of the signal: expect no visible change\."),
        (0.099, "flow", r"The error is 9\.9 % of the signal: expect no visible change\."),
        (0.15, "ve", "The error is 15 % of the signal: expect slight differences .* mostly systematic"),
        (0.41, "ve", "The error is 41 % of the signal: .*Q-Drift may bring the images as a whole a little closer"),
        (0.41, "flow", "The error is 41 % of the signal: .*little from Q-Drift, as measured on flow"),
        (0.58, "ve", "The error is 58 % of the signal: expect visible damage that Q-Drift does not repair"),
        (1.5, "flow", "The error is 150 % of the signal: expect visible damage"),
    ],
)
def test_verdict(error, path, message):
    found = of_relative_error(error, path).verdict()
    assert re.fullmatch(f"{message}.*", found), found
    assert found.endswith(".") and "\n" not in found


def test_the_verdict_takes_the_root_mean_square_over_sigmas():
    mild, strong = of_relative_error(0.1).moments(0), of_relative_error(0.7).moments(0)
    found = QDriftStatistics.from_runs([2.0, 1.0], [[mild, strong]], provenance((1,), latent_channels=1))
    assert found.verdict().startswith("The error is 50 % of")  # sqrt((0.01 + 0.49) / 2)


def test_the_verdict_says_how_much_may_be_noise():
    # Independent of eps, so slope = 0.16/1.16 and V = 0.16 - 0.16 * slope: 1/1.16 = 86 % of the error's power.
    assert "at most 86 % of the error's power" in of_relative_error(0.4).verdict()


def test_description():
    found = statistics((1, 2, 3), quantization="q" * 500, full_model="evil\x1b[2J")
    lines = found.describe().splitlines()
    assert lines[0] == "Q-Drift statistics: base_w4a4.safetensors against evil [2J"
    assert (
        lines[1]
        == "ve, 3 channels, 4 sigmas from 14.6 to 0.03, 3 runs, with moment matching, without layer correction"
    )
    assert "             cfg  4.5" in lines and "           seeds  1,2,3" in lines
    assert max(map(len, lines[:-1])) < 130 and lines[-1] == found.verdict()
    table = [line.split() for line in lines if line.split()[:1] in (["14.6"], ["3"], ["0.5"], ["0.03"])]
    assert len(table) == 4
    for i, cells in enumerate(table):
        moments = found.moments(i)
        v = moments.conditional_variance()
        expected = [SIGMAS[i], 108, v.mean(), v.min(), v.max(), moments.slope().mean()]
        assert [float(cell) for cell in cells[:-1]] == pytest.approx([float(e) for e in expected], abs=6e-4, rel=1e-3)
        error = moments.pooled().relative_error().item()
        assert float(cells[-1].rstrip("%")) == pytest.approx(100 * error, abs=0.006)


def test_maps_with_drift_and_trials_survive_a_file(tmp_path):
    found = statistics()
    scale, shift = 1 + found.state_scale, found.state_shift - 1
    tried = Trial((("plain", 0.0), ("drift", 1.0)), ((0.1,), (0.2,)), ((0.3,), (0.4,)))
    whole = dataclasses.replace(found, state_scale_drift=scale, state_shift_drift=shift, trial=tried)
    whole.save(tmp_path / "a.safetensors")
    back = QDriftStatistics.load(tmp_path / "a.safetensors")
    assert back.trial == tried and torch.equal(back.state_map("drift").scale, scale)
    assert torch.equal(back.state_map().scale, found.state_scale) and back.state_map().start == SIGMAS[0]
    assert "leave this model as it is" in back.verdict() and "held-out" in back.describe()
    assert found.state_map("drift") is None
    with pytest.raises(ValueError, match="state_shift_drift is missing"):
        dataclasses.replace(found, state_scale_drift=scale)
    with pytest.raises(ValueError, match="state_scale_drift is negative"):
        dataclasses.replace(found, state_scale_drift=-scale, state_shift_drift=shift)
    with pytest.raises(ValueError, match="does not begin below the first sigma"):
        dataclasses.replace(found, state_sigma=found.state_sigma + SIGMAS[0])


def test_a_broken_trial_is_refused_with_its_file(tmp_path):
    path = tmp_path / "a.safetensors"
    found = statistics()
    files.write(
        path,
        {**found._given(), "variance": torch.stack([row(found, i) for i in range(4)])},
        {**found.provenance.to_metadata(), "trial": "{}"},
    )
    with pytest.raises(ValueError, match=r"a\.safetensors: Trial: .*calibrate again"):
        QDriftStatistics.load(path)
