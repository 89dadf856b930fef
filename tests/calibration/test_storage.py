"""Files written whole by several processes at once, sealed with a checksum, and read piece by piece."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from gimbal.calibration import files, resume_parts, storage
from gimbal.calibration.statistics import QDriftStatistics
from gimbal.calibration.text import is_number, printable, strict_json
from gimbal.calibration.trial import Trial

ROOT = Path(__file__).parents[2]
WRITER = """
import sys, time
from pathlib import Path
import torch
from gimbal.calibration import storage
folder, number, rounds = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
for i in range(rounds):
    print(i, flush=True)
    sys.stdin.readline()
    for name in range(1, 100):
        try:
            storage.write(folder / f"{i}_{name}", {"x": torch.full((4,), float(number))}, {}, replace=False)
            break
        except FileExistsError:
            pass
"""


def values(path):
    with storage.opened(path) as file:
        file.verify(required=True)
        return file.tensor("x").tolist()


@pytest.mark.parametrize("links", [True, False])
def test_processes_that_write_at_once_lose_nothing(tmp_path, links):
    """Started together in each of 20 rounds, all after the same names; also without hard links, as on exFAT."""
    (tmp_path / "gimbal").symlink_to(ROOT, target_is_directory=True)
    (tmp_path / "out").mkdir()
    program = WRITER
    if not links:
        program = "import os\ndef link(*names): raise OSError(1, 'no hard links here')\nos.link = link\n" + program
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1"}
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", program, str(tmp_path / "out"), str(number), "20"],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in range(3)
    ]
    for i in range(20):
        for writer in writers:
            assert writer.stdout.readline() == f"{i}\n"
        for writer in writers:
            writer.stdin.write("go\n")
            writer.stdin.flush()
    assert [writer.wait(60) for writer in writers] == [0, 0, 0]
    for writer in writers:
        writer.stdin.close()
        writer.stdout.close()
    for i in range(20):
        written = sorted(values(tmp_path / "out" / f"{i}_{name}")[0] for name in (1, 2, 3))
        assert written == [0.0, 1.0, 2.0], "one of them has replaced another's"
    assert len(os.listdir(tmp_path / "out")) == 60


def test_a_taken_name_is_refused_and_left_alone(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"mine")
    with pytest.raises(FileExistsError):
        storage.write(path, {"x": torch.ones(1)}, {}, replace=False)
    assert path.read_bytes() == b"mine" and os.listdir(tmp_path) == ["a"]


def test_a_full_disk_leaves_no_claim(tmp_path, monkeypatch):
    def full(*names):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "link", full)
    monkeypatch.setattr(os, "open", full)
    with pytest.raises(OSError, match="No space left"):
        storage.claim(tmp_path / "draft", tmp_path / "a")
    assert not os.listdir(tmp_path)


def test_each_bit_of_a_sealed_file_counts(tmp_path):
    path = tmp_path / "a"
    storage.write(path, {"x": torch.ones(2)}, {"word": "text"})
    whole = path.read_bytes()
    for place in range(len(whole)):
        data = bytearray(whole)
        data[place] ^= 1
        path.write_bytes(data)
        with pytest.raises(ValueError, match=r"\S"):
            values(path)


def test_names_of_the_header_stand_once(tmp_path):
    path = tmp_path / "a"
    storage.write(path, {"x": torch.ones(2)}, {"word": "text"})
    header = path.read_bytes()[8:].split(b"}", 1)[0]
    data = path.read_bytes().replace(b'"word":"text"', b'"word":"text","word":"other"')
    path.write_bytes((int.from_bytes(data[:8], "little") + len(b',"word":"other"')).to_bytes(8, "little") + data[8:])
    assert header
    with pytest.raises(ValueError, match="it has 'word' twice"), storage.opened(path):
        pass


def test_a_file_too_large_to_read_is_known_by_its_size(tmp_path, monkeypatch):
    path = tmp_path / "a"
    path.write_bytes(b"some bytes")
    one = files.digest(path)
    path.write_bytes(b"same sizes")
    assert files.digest(path) != one
    os.truncate(path, 5 * 2**30)  # sparse
    monkeypatch.setattr(Path, "open", None)
    assert files.digest(path) == f"{5 * 2**30} bytes"


@pytest.mark.parametrize("name", [None, 5, {}, "a\0b", b"a"])
def test_what_is_no_path_is_refused(name):
    with pytest.raises(ValueError, match=r"QDriftStatistics\.load: path is .*; pass the name of a file"):
        QDriftStatistics.load(name)


BAD_PARTS = {
    "NaN": [float("nan"), 1.0, 0.1, 0.1, 0.1, 0.1],
    "negative": [-1.0, 1.0, 0.1, 0.1, 0.1, 0.1],
    "huge": [1e300, 1.0, 0.1, 0.1, 0.1, 0.1],
    "colour below 0": [0.5, 1.0, 0.1, -0.1, 0.1, 0.1],
    "grain beyond what a ratio can be": [0.5, 1.0, 0.1, 0.1, -1e6, 0.1],
    "another shape": [0.5, 1.0, 0.1],
}


@pytest.mark.parametrize("name", BAD_PARTS)
def test_a_part_of_bad_values_names_itself_and_its_folder(name, tmp_path):
    def save(values):
        both, seen = torch.tensor(values, dtype=torch.float64).split((2, len(values) - 2))
        resume_parts.save(path, {"measures": both, "seen": seen[:, None]})

    path = tmp_path / "key" / "trial.partial"
    save(BAD_PARTS[name])
    with pytest.raises(ValueError, match=r"trial\.partial: a part .* made again; .* delete the folder .*key\.$"):
        resume_parts.load_tried(path)
    save([1.0, 2.0, 0.1, 0.2, -0.3, 0.4])
    found = resume_parts.load_tried(path)
    assert found[:2] == (1.0, 2.0) and [float(value) for value in found.seen] == [0.1, 0.2, -0.3, 0.4]
    assert resume_parts.load_tried(tmp_path / "none") is None


def test_a_part_without_a_checksum_is_refused(tmp_path):
    from safetensors.torch import save_file

    save_file({"measures": torch.ones(1, 2).double()}, tmp_path / "a", {"format": resume_parts.FORMAT})
    with pytest.raises(ValueError, match="it has no checksum"):
        resume_parts.load_tried(tmp_path / "a")


@pytest.mark.parametrize(
    ("candidate", "message"),
    [
        (("moments", -7.0), "strength of moments is -7.0"),
        (("moments", float("nan")), "strength of moments is nan"),
        (("moments", 1e308), r"strength of moments is 1e\+308"),
        (("moments", 10**400), "strength of moments is 1000"),
        (("moments", 0.0), "not above 0"),
        (
            ("sharpen", 1.0),
            "'sharpen' is none of drift, moments, both, layers, layers and moments, plan; update Gimbal",
        ),
        (("plain", 0.0), "none of drift"),
    ],
)
def test_what_a_trial_cannot_have_tried(candidate, message):
    with pytest.raises(ValueError, match=message):
        Trial((("plain", 0.0), candidate), ((0.2,), (0.1,)), ((0.2,), (0.1,)))


def test_texts_of_others_are_shown_on_one_line_and_encodable():
    assert printable("a\nb\x1b[31m\udcff\u00e4") == "a\\nb\\x1b[31m\\udcff\u00e4"
    assert printable("x" * 1000) == "x" * 150 + "..." + "x" * 150 and printable("x" * 1000, None) == "x" * 1000


@pytest.mark.parametrize("text", ["", "[" * 50_000, '{"a": 1, "a": 2}', "NaN", "-Infinity", "1e999", "9" * 5000])
def test_json_is_read_strictly(text):
    with pytest.raises(ValueError, match=r"\S") as caught:
        strict_json(text)
    assert len(str(caught.value)) < 300


def test_numbers_of_any_size_are_compared():
    assert is_number(3, 0, 10) and is_number(0.5, 0, 1)
    for odd in (10**400, float("nan"), True, "1", None, -1):
        assert not is_number(odd, 0, 10)
