"""The loop that trains the demo's models: what it learns, and that a stopped training spoils no file."""

import argparse
import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

DEMO = Path(__file__).resolve().parent.parent / "demo"


@pytest.fixture
def fitting(monkeypatch):
    monkeypatch.syspath_prepend(str(DEMO))
    import fitting

    return fitting


class Line(nn.Module):
    """y = weight x + offset; the offset a buffer, as the networks' table of positions."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1, 1))
        self.register_buffer("offset", torch.zeros(1).requires_grad_(True))

    def forward(self, x):
        return x @ self.weight + self.offset


def arguments(path, iterations):
    return argparse.Namespace(iterations=iterations, rate=0.05, glyphs=0, seed=0, threads=1, output=path)


def loss_of(network):
    generator = torch.Generator().manual_seed(0)

    def loss(step):
        x = torch.randn(32, 1, generator=generator)
        return (network(x) - (3 * x - 1)).square().mean()

    return loss


def test_weights_and_buffers_are_learned_and_the_recipe_is_kept(tmp_path, fitting):
    network, path = Line(), tmp_path / "models" / "line.safetensors"
    fitting.fit(arguments(path, 600), network, loss_of(network), {"about": "a line"}, [network.offset])
    found = load_file(path)
    assert found["weight"].dtype == torch.float16
    assert (found["weight"].item(), found["offset"].item()) == pytest.approx((3.0, -1.0), abs=0.05)
    with safe_open(path, "pt") as file:
        recipe = json.loads(file.metadata()["gimbal_demo"])
    assert (recipe["about"], recipe["iterations"], recipe["steps_done"]) == ("a line", 600, 600)
    assert recipe["final_loss"] < 0.01
    assert [each.name for each in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("wrong", [{"iterations": 0}, {"glyphs": 9}])
def test_nothing_to_train_with_is_said_before_anything_is_made(tmp_path, fitting, wrong):
    args = arguments(tmp_path / "line.safetensors", 1)
    args.glyphs = 10
    vars(args).update(wrong)
    name, value = next(iter(wrong.items()))
    with pytest.raises(ValueError, match=f"--{name} is {value}"):
        fitting.prepare(args)


def test_a_stopped_training_leaves_the_file_there_was(tmp_path, fitting, monkeypatch):
    monkeypatch.setattr(fitting, "SAVE_SECONDS", 0.0)
    network, path = Line(), tmp_path / "line.safetensors"
    path.write_bytes(b"the model there was")
    learning = loss_of(network)

    def stopped(step):
        if step == 5:
            raise KeyboardInterrupt
        return learning(step)

    with pytest.raises(KeyboardInterrupt):
        fitting.fit(arguments(path, 600), network, stopped, {}, [network.offset])
    assert path.read_bytes() == b"the model there was"
    with safe_open(path.with_suffix(".partial"), "pt") as file:
        assert json.loads(file.metadata()["gimbal_demo"])["steps_done"] == 5
