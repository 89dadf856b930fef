"""Full precision's means at its places, in their file beside a run."""

import pytest
import torch

from gimbal.calibration import place_means, storage
from gimbal.calibration.place_means import PlaceMeans
from gimbal.calibration.trajectories import ModelCall, Trajectory, TrajectoryStore
from gimbal.core.places import Place

OUT, MLP, BLOCK = Place("blocks.0.out", 0, 2, -1), Place("blocks.0.mlp", 0, 3, -1), Place("blocks.0", 1, 4, 1)


def means():
    return PlaceMeans((OUT, MLP), (BLOCK,), torch.arange(2 * 2 * 9.0).view(2, 2, 9))


def trajectory(given=None):
    call = ModelCall(torch.zeros(1, 2, 4, 4), torch.ones(1), torch.zeros(1, 2, 4, 4))
    return Trajectory([call], torch.zeros(1, 2, 4, 4), given)


def test_they_survive_their_file(tmp_path):
    store = TrajectoryStore(tmp_path / "runs", ".partial")
    store.put("a", trajectory(means()))
    assert store.holds("a") and store.holds_means("a")
    found = store.means("a")
    assert (found.residual, found.block) == ((OUT, MLP), (BLOCK,)) and torch.equal(found.mean, means().mean)


def test_a_run_without_them_has_none(tmp_path):
    store = TrajectoryStore(tmp_path)
    store.put("a", trajectory())
    assert store.holds("a") and not store.holds_means("a") and store.means("a") is None


def test_places_are_read_in_the_order_asked():
    whole = means().mean
    assert torch.equal(means().of([MLP, OUT]), torch.cat([whole[:, :, 2:5], whole[:, :, :2]], 2))
    assert torch.equal(means().of([BLOCK]), whole[:, :, 5:])
    with pytest.raises(ValueError, match=r"tells nothing of blocks\.1; record it again"):
        means().of([Place("blocks.1", 0, 4, 1)])


def test_a_network_without_places_is_kept_too(tmp_path):
    """So that a run is not recorded again and again for means that cannot be."""
    place_means.save(tmp_path / "a", PlaceMeans.none())
    found = place_means.load(tmp_path / "a")
    assert found.residual == found.block == () and found.mean.numel() == 0


@pytest.mark.parametrize(
    ("mean", "metadata", "message"),
    [
        (torch.zeros(2, 2, 8), {}, r"not \(\.\., \.\., 9\)"),
        (torch.zeros(2, 2, 9).double(), {}, "missing or not F32"),
        (torch.full((2, 2, 9), float("nan")), {}, "NaN or infinity"),
        (torch.zeros(2, 2, 9), {"format": "gimbal.qdrift.means/9"}, "not of this version"),
        (torch.zeros(2, 2, 9), {"block": "[[1]]"}, "no list of places"),
    ],
)
def test_a_forged_file_is_refused_and_recorded_again(tmp_path, mean, metadata, message, caplog):
    store = TrajectoryStore(tmp_path)
    store.put_means("a", means())
    path = tmp_path / "a.means.safetensors"
    with storage.opened(path) as file:
        before = {name: text for name, text in file.metadata.items() if not name.startswith("checksum")}
    storage.write(path, {"mean": mean}, {**before, **metadata})
    with pytest.raises(ValueError, match=rf"a\.means\.safetensors: .*{message}.*record it again"):
        store.means("a")
    assert not store.holds_means("a") and "record it again" in caplog.text


def test_a_damaged_file_is_refused(tmp_path):
    store = TrajectoryStore(tmp_path)
    store.put_means("a", means())
    path = tmp_path / "a.means.safetensors"
    whole = bytearray(path.read_bytes())
    whole[-5] ^= 1
    path.write_bytes(whole)
    with pytest.raises(ValueError, match=r"damaged.*record it again"):
        store.means("a")
