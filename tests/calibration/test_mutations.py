"""Thousands of damaged and forged files: each is refused with its name and a remedy, or read to the values written."""

import json
import os
import random
import struct

import pytest
import safetensors.torch
import torch

from gimbal.calibration import resume_parts
from gimbal.calibration.collect import RunMoments
from gimbal.calibration.measures import Measures
from gimbal.calibration.moments import JointMoments
from gimbal.calibration.provenance import Provenance
from gimbal.calibration.statistics import QDriftStatistics
from gimbal.calibration.trajectories import ModelCall, Trajectory, TrajectoryStore
from gimbal.calibration.trajectory_header import read_header, write_header
from gimbal.calibration.trial import Trial, Tried
from gimbal.core.layer_correction import LayerOffsets
from gimbal.core.places import Place

CHANNELS, EACH = 2, 550
HUGE = "9" * 400


def latents(seed):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(1, CHANNELS, 4, 4, generator=generator) for _ in range(3)]


def measured():
    run = RunMoments(CHANNELS)
    for seed, sigma in enumerate((5.0, 1.0)):
        run.add(sigma, *latents(seed))
        run.add_state(latents(seed)[0])
    return run


def make_statistics(path):
    runs = [measured().moments, measured().moments]
    provenance = Provenance(
        path="ve", latent_channels=CHANNELS, latent_format="SDXL", cfg=4.5, steps=2, runs=2, seeds=(1, 2)
    )
    state = [1.0, 0.0], torch.ones(2, CHANNELS), torch.zeros(2, CHANNELS)
    trial = Trial((("plain", 0.0), ("moments", 0.5)), ((0.2, 0.3), (0.1, 0.2)), ((0.1, 0.1), (0.05, 0.05)))
    found = QDriftStatistics.from_runs([5.0, 1.0], runs, provenance, state)
    places = Place("blocks.0.proj", 0, 3, -1), Place("blocks.1", 1, 2, 1)
    edges, offset = torch.tensor([1.0, 0.0], dtype=torch.float64), torch.arange(10.0).view(2, 5).bfloat16()
    beside = {"state_scale_layers": torch.ones(2, CHANNELS), "state_shift_layers": torch.zeros(2, CHANNELS)}
    layers = LayerOffsets(places, edges, offset)
    QDriftStatistics(**{**vars(found), **beside, "layers": layers, "trial": trial}).save(path)


def read_statistics(path):
    found = QDriftStatistics.load(path)
    assert found.describe()
    metadata = {**found.provenance.to_metadata(), "trial": found.trial and found.trial.to_text()}
    return found._given(), {**metadata, **(found.layers.to_file()[1] if found.layers else {})}


def read_run(path):
    run = RunMoments.load(path, CHANNELS)
    moments = [part for each in (*run.moments, *run.states) for part in (each.mean, each.m2, torch.tensor(each.count))]
    shapes = [part for each in run.residuals for part in (each.count, each.fourth, each.histogram)]
    return dict(enumerate([*moments, *shapes])), {"levels": run.levels}


def make_part(path):
    resume_parts.save_tried(path, Tried(0.5, 0.25, Measures(*torch.rand(4, 3, dtype=torch.float64))))


def read_part(path):
    found = resume_parts.load_tried(path)
    return {"measures": torch.tensor(found[:2], dtype=torch.float64), "seen": torch.stack(found.seen)}, {}


def make_map(path):
    resume_parts.save(
        path, {"scale": torch.ones(3, 2, dtype=torch.float64), "shift": torch.zeros(3, 2, dtype=torch.float64)}
    )


def read_map(path):
    return dict(zip(("scale", "shift"), resume_parts.load_map(path, 3, 2), strict=True)), {}


def make_trajectory(path):
    calls = [ModelCall(latents(i)[0], torch.tensor([1.0 / (i + 1)]), latents(i)[1]) for i in range(3)]
    TrajectoryStore(path.parent).put(path.stem, Trajectory(calls, latents(9)[0]))


def read_trajectory(path):
    store = TrajectoryStore(path.parent)
    calls, final, length = list(store.calls(path.stem)), store.final(path.stem), store.length(path.stem)
    assert len(calls) == length and store.holds(path.stem)
    return {
        "final": final,
        **{f"{i} {n}": value for i, call in enumerate(calls) for n, value in vars(call).items()},
    }, {}


def make_header(path):
    traits = {"path": "flow", "kind": "CONST", "channels": 2, "latent_format": "SD3", "sigma_min": 0.0, "sigma_max": 1}
    settings = {
        "key": "k",
        "traits": traits,
        "cfg": 3.5,
        "sampler": "euler",
        "scheduler": "simple",
        "batch_index": [0],
        "seeds": [1, 2],
        "held_out": 1,
        "prompts": ["a", "b"],
        "full_model": "m",
        "full_digest": "d",
    }
    write_header(path.parent, settings, {"latent": latents(0)[0], "sigmas": torch.tensor([1.0, 0.5, 0.0])})


def read_settings(path):
    settings, tensors = read_header(path.parent)
    return tensors, settings


FILES = {
    "statistics": ("s.safetensors", make_statistics, read_statistics),
    "run": ("r.partial", lambda path: measured().save(path), read_run),
    "measures": ("p.partial", make_part, read_part),
    "map": ("m.partial", make_map, read_map),
    "trajectory": ("t.safetensors", make_trajectory, read_trajectory),
    "header": ("trajectory.safetensors", make_header, read_settings),
}

# Mutations of bytes. Each takes the whole file and a random generator.


def split(data):
    size = struct.unpack("<Q", data[:8])[0]
    return data[8 : 8 + size], data[8 + size :]


def joined(header, body):
    return struct.pack("<Q", len(header)) + header + body


def flipped(data, dice):
    found = bytearray(data)
    for _ in range(dice.choice((1, 1, 2, 8))):
        found[dice.randrange(len(found))] ^= 1 << dice.randrange(8)
    return bytes(found)


def overwritten(data, dice):
    start, size = dice.randrange(len(data)), dice.choice((1, 8, 64, 512))
    found = bytearray(data)
    found[start : start + size] = dice.choice((b"\0", b"\xff", b"[", b"9", b'"')) * len(found[start : start + size])
    return bytes(found)


def cut(data, dice):
    return data[: dice.randrange(len(data))]


def longer(data, dice):
    return data + dice.randbytes(dice.choice((1, 8, 1000)))


def other_size(data, dice):
    return (
        struct.pack("<Q", dice.choice((0, 1, 2, 8, 2**20, 2**31, 2**63, 2**64 - 1, dice.randrange(4000)))) + data[8:]
    )


def nested(data, dice):
    depth = dice.choice((10, 1000, 50_000))
    header, body = split(data)
    deep = b"[" * depth + b"]" * dice.choice((0, depth))
    return joined(dice.choice((deep, header[:-1] + b',"deep":' + deep + b"}")), body)


def twice(data, dice):
    """A name of the header that stands twice, with another value."""
    header, body = split(data)
    fields = json.loads(header)
    name = dice.choice(list(fields))
    other = dice.choice((fields[name], {}, None, {"dtype": "F64", "shape": [1], "data_offsets": [0, 8]}))
    return joined(header[:-1] + b"," + json.dumps({name: other}).encode()[1:], body)


def metadata_twice(data, dice):
    header, body = split(data)
    name = dice.choice(list(json.loads(header)["__metadata__"]))
    more = json.dumps({name: dice.choice(("7", "ve", ""))}).encode()[1:-1]
    return joined(header.replace(b'"__metadata__":{', b'"__metadata__":{' + more + b","), body)


def table(data, dice):
    """Another dtype, shape or place of a tensor in the header."""
    header, body = split(data)
    fields = json.loads(header)
    entry = fields[dice.choice([name for name in fields if name != "__metadata__"])]
    what = dice.choice(list(entry))
    entry[what] = dice.choice(
        {
            "dtype": ("F32", "F64", "I64", "BF16", "F8_E4M3", "BOOL", "X", 5, None, []),
            "shape": ([], [0], [1], [-1], [2**63], [2**32, 2**32], [True], ["2"], None, [[1]], entry["shape"][::-1]),
            "data_offsets": ([0, 0], [0, 8], [8, 0], [-8, 8], [0, 2**64], [0, int(HUGE)], ["a", "b"], None, [0]),
        }[what]
    )
    return joined(json.dumps(fields, separators=(",", ":")).encode(), body)


# Mutations of what is written: tensors and metadata, with a checksum, none, or that of the file before.


def worse(value, dice):
    kind = dice.choice(("value", "dtype", "shape"))
    if kind == "dtype":
        return value.to(
            dice.choice((torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int64, torch.bool))
        )
    if kind == "shape":
        flat = value.flatten()
        return dice.choice(
            (value[:0], value[:1], value[None], flat, torch.cat([value, value]), value[..., :1])
        ).clone()
    found = value.clone().flatten()
    if value.is_floating_point():
        odd = dice.choice((float("nan"), float("inf"), -float("inf"), -1.0, 0.0, 1e300, -1e30, 1e-300, 1e30, 1e18))
    else:
        odd = dice.choice((-1, 0, 2**62, -(2**63), 2**48 + 1))
    found[dice.randrange(len(found))] = torch.tensor(odd, dtype=torch.float64 if isinstance(odd, float) else None)
    return found.view(value.shape)


ODD = (
    *(
        "",
        "NaN",
        "-1",
        "1e999",
        "1e308",
        HUGE,
        "\u0664",
        "[" * 50_000,
        "null",
        "{}",
        "[]",
        "0",
        "a\nb",
        "\\ud800",
        "1,2",
    ),
    '{"a":1,"a":2}',
    '{"candidates": [["plain", 0.0], ["moments", -7]], "error": [[1.0], [0.1]], "distance": [[1.0], [0.1]]}',
    '{"candidates": [["plain", 0.0], ["moments", NaN]], "error": [[1.0], [0.1]], "distance": [[1.0], [0.1]]}',
    '{"candidates": [["plain", 0.0], ["moments", 1e308]], "error": [[1.0], [0.1]], "distance": [[1.0], [0.1]]}',
    '{"candidates": [["plain", 0.0], ["sharpen", 1.0]], "error": [[1.0], [0.1]], "distance": [[1.0], [0.1]]}',
    '{"candidates": [["plain", 0.0], ["drift", 1.0]], "error": [[1.0], [0.1]], "distance": [[1.0], [' + HUGE + "]]}",
)


def odd_json(text, dice):
    """The same settings, one of them another kind of thing."""
    fields = json.loads(text)
    inner = fields["traits"] if "traits" in fields and dice.random() < 0.4 else fields
    name = dice.choice(list(inner))
    odd = (
        None,
        True,
        -1,
        1.5,
        "",
        "x",
        [],
        [None],
        ["a"],
        {},
        {"a": 1},
        int(HUGE),
        float("nan"),
        1e308,
        [1e308],
        [-1],
    )
    inner[name] = dice.choice(odd)
    if dice.random() < 0.2:
        del inner[name]
    return json.dumps(fields)


def rewritten(path, dice):
    with safetensors.safe_open(path, framework="pt") as file:
        metadata = file.metadata()
        tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    name = dice.choice(list(tensors))
    kind = dice.choice(("tensor", "tensor", "tensor", "missing", "more", "metadata", "settings"))
    if kind == "tensor":
        tensors[name] = worse(tensors[name], dice)
    elif kind == "missing":
        del tensors[name]
    elif kind == "more":
        tensors["more"] = torch.ones(2)
    texts = [name for name in metadata if not name.startswith("checksum")]
    structured = [name for name in texts if name in ("settings", "trial")]
    if kind == "settings" and structured:
        metadata[structured[0]] = odd_json(metadata[structured[0]], dice)
    elif kind in ("metadata", "settings"):
        metadata[dice.choice(texts)] = dice.choice(ODD)
    if dice.random() < 0.8:
        del metadata["checksum"], metadata["checksum_kind"]
    safetensors.torch.save_file(tensors, path, metadata)
    if "checksum" not in metadata and dice.random() < 0.6:
        seal(path, tensors, metadata)
    return tensors, metadata


def seal(path, tensors, metadata):
    """With a checksum that is right, as a program with a mistake would write it."""
    from gimbal.calibration import storage

    storage.write(path, tensors, metadata)


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda handle: None)


BYTES = (flipped, flipped, overwritten, cut, longer, other_size, nested, twice, metadata_twice, table)
REMEDIES = (
    "copy the file again",
    "choose another",
    "update Gimbal",
    "record it again",
    "record the traj",
    "made again",
)


def attempt(read, path):
    """What reading gives, or None where it is refused as it should be."""
    try:
        return read(path)
    except ValueError as error:
        message = str(error)
        assert type(error) is ValueError and path.name in message and any(each in message for each in REMEDIES), (
            message
        )
        assert "\n" not in message and len(message) < 1200 + len(str(path)), message
        message.encode()
        return None


def same(found, expected):
    (tensors, texts), (others, other_texts) = found, expected
    assert texts == other_texts and set(tensors) == set(others)
    for name, value in tensors.items():
        assert value.dtype == others[name].dtype and torch.equal(value, others[name]), name


@pytest.mark.parametrize("kind", FILES)
def test_damaged_bytes_are_refused_or_make_no_difference(kind, tmp_path):
    name, make, read = FILES[kind]
    path, dice = tmp_path / name, random.Random(kind)
    make(path)
    whole, expected = path.read_bytes(), read(path)
    refused = 0
    for number in range(EACH // 2):
        path.write_bytes(BYTES[number % len(BYTES)](whole, dice))
        found = attempt(read, path)
        if found is None:
            refused += 1
        else:
            same(found, expected)
    assert refused > 0.9 * (EACH // 2), "hardly anything was damaged"


@pytest.mark.parametrize("kind", FILES)
def test_forged_contents_are_refused_or_read_as_written(kind, tmp_path):
    name, make, read = FILES[kind]
    path, dice = tmp_path / name, random.Random(kind)
    make(path)
    whole, refused = path.read_bytes(), 0
    for _ in range(EACH // 2):
        path.write_bytes(whole)
        tensors, metadata = rewritten(path, dice)
        found = attempt(read, path)
        if found is None:
            refused += 1
            continue
        values, texts = found
        for each, value in values.items():
            assert value.isfinite().all(), each
            if each in tensors:
                assert value.dtype == tensors[each].dtype and torch.equal(value, tensors[each]), each
        if kind == "statistics":
            for each in ("cfg", "steps", "runs"):
                assert float(texts[each]) == float(metadata[each])
            assert texts["trial"] is None or json.loads(texts["trial"]) == json.loads(metadata["trial"])
        if kind == "header":
            assert texts == json.loads(metadata["settings"])
    assert refused > 0.3 * (EACH // 2)


def test_there_are_three_thousand():
    assert 2 * len(FILES) * (EACH // 2) >= 3000


def test_moments_of_extremes_do_not_reach_a_correction(tmp_path):
    """What the bounds are for: everything that is worked out of values at their limits is finite."""
    mean = torch.full((1, 2, CHANNELS), 1e15, dtype=torch.float64)
    m2 = torch.tensor([1e30, 0.0, 1e30], dtype=torch.float64)[None, :, None].expand(1, 3, CHANNELS)
    provenance = Provenance(
        path="ve", latent_channels=CHANNELS, latent_format="", cfg=1.0, steps=1, runs=1, seeds=(1,)
    )
    extreme = QDriftStatistics(
        torch.ones(1, dtype=torch.float64), torch.ones(1, dtype=torch.int64), mean, m2.contiguous(), provenance
    )
    assert isinstance(extreme.moments(0), JointMoments)
    for read in (extreme.variance, extreme.slope, extreme.intercept):
        assert read(1.0).isfinite().all()
