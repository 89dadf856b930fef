"""python -m gimbal.calibration, in this process and once as users call it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from gimbal.calibration.__main__ import main
from gimbal.calibration.moments import JointMoments
from gimbal.calibration.provenance import Provenance
from gimbal.calibration.statistics import QDriftStatistics

ROOT = Path(__file__).resolve().parents[2]


def save(path, seed, state=False, **changes):
    generator = torch.Generator().manual_seed(seed)
    run = []
    for _ in range(2):
        moments = JointMoments(1)
        moments.update(*(torch.randn(1, 1, 5, 5, generator=generator) for _ in range(2)))
        run.append(moments)
    given = {"path": "flow", "latent_channels": 1, "latent_format": "", "cfg": 1.0, "steps": 2, "runs": 1}
    state_map = ([0.5, 0.0], torch.ones(2, 1), torch.zeros(2, 1)) if state else None
    found = QDriftStatistics.from_runs([1.0, 0.5], [run], Provenance(seeds=(seed,), **{**given, **changes}), state_map)
    found.save(path)
    return found


@pytest.fixture
def files(tmp_path):
    save(tmp_path / "a.safetensors", 1)
    save(tmp_path / "b.safetensors", 2)
    return [str(tmp_path / name) for name in ("a.safetensors", "b.safetensors", "out.safetensors")]


def test_describe(files, capsys):
    assert main(["describe", *files[:2]]) == 0
    out, err = capsys.readouterr()
    expected = [f"{path}\n{QDriftStatistics.load(path).describe()}" for path in files[:2]]
    assert out == "\n".join(expected) and err == ""


def test_describe_names_each_bad_file_and_shows_the_others(files, tmp_path, capsys):
    (tmp_path / "bad").write_bytes(b"no statistics")
    assert main(["describe", str(tmp_path / "none"), str(tmp_path / "bad"), files[0]]) == 1
    out, err = capsys.readouterr()
    assert QDriftStatistics.load(files[0]).describe() in out
    first, second = err.splitlines()
    assert first.startswith("error: ") and str(tmp_path / "none") in first
    assert second.startswith(f"error: {tmp_path / 'bad'}: this is no safetensors file")


@pytest.mark.skipif(os.name == "nt", reason="no such file names")
def test_an_error_is_one_line_whatever_the_file_is_called(tmp_path, capsys):
    (tmp_path / "two\nlines").write_bytes(b"no statistics")
    assert main(["describe", str(tmp_path / "two\nlines")]) == 1
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "two\\nlines: this is no safetensors file" in err


@pytest.mark.skipif(os.name == "nt", reason="no such files")
def test_devices_and_pipes_are_not_replaced(files, tmp_path, capsys):
    a, b, _ = files
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    (tmp_path / "device").symlink_to("/dev/null")
    (tmp_path / "nowhere").symlink_to(tmp_path / "none")
    for name in ("pipe", "folder", "device", "nowhere"):
        before = os.lstat(tmp_path / name)
        assert main(["merge", a, b, "--output", str(tmp_path / name), "--force"]) == 1
        assert "is no regular file and is not replaced; choose another name" in capsys.readouterr().err
        assert os.lstat(tmp_path / name) == before


@pytest.mark.skipif(os.name == "nt", reason="no such file names")
def test_a_name_that_is_no_text_is_shown_escaped(files, tmp_path, capsys):
    odd = os.path.join(os.fsencode(tmp_path), b"odd\xff.safetensors").decode("utf-8", "surrogateescape")
    assert main(["merge", *files[:2], "--output", odd]) == 1
    assert "odd\\udcff.safetensors: its name is no text" in capsys.readouterr().err and not os.path.lexists(odd)
    Path(odd).write_bytes(Path(files[0]).read_bytes())
    assert main(["describe", odd]) == 1
    assert "odd\\udcff.safetensors: its name is no text" in capsys.readouterr().err
    with pytest.raises(ValueError, match="safetensors") as caught:
        QDriftStatistics.load(odd)
    str(caught.value).encode()


def test_merge(files, capsys):
    a, b, out = files
    assert main(["merge", a, b, "--output", out]) == 0
    assert capsys.readouterr() == (f"{out}: 2 runs from 2 files.\n", "")
    expected = QDriftStatistics.merge([QDriftStatistics.load(a), QDriftStatistics.load(b)])
    found = QDriftStatistics.load(out)
    assert torch.equal(found.m2, expected.m2) and found.provenance == expected.provenance


def test_merge_says_what_it_leaves_out(files, capsys):
    save(files[0], 1, state=True)
    assert main(["merge", files[0], files[1], "--output", files[2]]) == 0
    assert "moment matching cannot be merged and were left out." in capsys.readouterr().out


def test_merge_replaces_a_file_only_when_told(files, capsys):
    a, b, out = files
    Path(out).write_text("mine")
    assert main(["merge", a, b, "--output", out]) == 1
    assert capsys.readouterr() == ("", f"error: {out} exists; choose another name, or pass --force to replace it.\n")
    assert Path(out).read_text() == "mine"
    assert main(["merge", a, b, "--output", out, "--force"]) == 0
    assert QDriftStatistics.load(out).provenance.runs == 2


def test_merge_that_fails_writes_nothing(files, tmp_path, capsys):
    a, b, out = files
    save(b, 2, cfg=3.0)
    for arguments, message in [
        (["merge", a, b, "--output", out], "cfg differs: 1.0 and 3.0"),
        (["merge", a, a, "--output", out], "is in two of them"),
        (["merge", a, "--output", out], f"{a} is the only file"),
        (["merge", a, str(tmp_path / "c"), "--output", out], str(tmp_path / "c")),
        (["merge", a, b, "--output", str(tmp_path / "no" / "out")], "cfg differs"),
    ]:
        assert main(arguments) == 1
        stdout, stderr = capsys.readouterr()
        assert stdout == "" and stderr.startswith("error: ") and message in stderr and stderr.count("\n") == 1
        assert not Path(out).exists()


def test_merge_into_a_missing_folder(files, tmp_path, capsys):
    assert main(["merge", *files[:2], "--output", str(tmp_path / "no" / "out")]) == 1
    assert "No such file or directory" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [[], ["describe"], ["merge", "a"], ["forget", "a"]])
def test_usage(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "python -m gimbal.calibration" in capsys.readouterr().err


def test_as_a_command(files, tmp_path):
    """As after `pip install`, on a console that knows no letters beyond ASCII."""
    save(files[0], 1, full_model="\u6a21\u578b")
    (tmp_path / "gimbal").symlink_to(ROOT, target_is_directory=True)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "PYTHONIOENCODING": "ascii"}
    command = [sys.executable, "-m", "gimbal.calibration", "describe"]
    done = subprocess.run([*command, files[0]], env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == ""
    assert done.stdout.startswith(f"{files[0]}\nQ-Drift statistics: ") and "\\u6a21" in done.stdout
    done = subprocess.run([*command, files[2]], env=environment, capture_output=True, text=True)
    assert done.returncode == 1 and done.stdout == "" and done.stderr.count("\n") == 1
    assert done.stderr.startswith("error: ") and files[2] in done.stderr
