"""Places of a network, found by name and in a call, and hooks that never outlive it."""

from collections import namedtuple

import pytest
import torch
from torch import nn

from gimbal.core import places
from gimbal.core.place_hooks import acting, observing
from gimbal.core.places import Place

WIDTH = 4


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.to_q, self.to_k, self.to_v = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.to_out = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Identity())

    def forward(self, x):
        return self.to_out(torch.softmax(self.to_q(x) @ self.to_k(x).mT, -1) @ self.to_v(x))


class Block(nn.Module):
    """Gives both streams, as the blocks of SD3, Flux and Qwen-Image do."""

    def __init__(self):
        super().__init__()
        self.attn, self.modulation = Attention(), nn.Linear(WIDTH, WIDTH)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH))

    def forward(self, context, x, level):
        x = x + self.attn(x) * self.modulation(level)[:, None]
        return context + 1, x + self.mlp(x)


class Network(nn.Module):
    def __init__(self, broken=False):
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.broken = nn.Linear(WIDTH, WIDTH), broken
        self.blocks = nn.ModuleList([Block(), Block()])

    def forward(self, x):
        context, x = torch.zeros(len(x), 2, WIDTH), self.embed(x)
        for block in self.blocks:
            context, x = block(context, x, x[:, 0])
            if self.broken:
                raise RuntimeError("the user pressed Cancel")
        return x


class UNet(nn.Module):
    """Whose sequences are opened by the network itself, as ComfyUI's are."""

    def __init__(self):
        super().__init__()
        self.input_blocks = nn.ModuleList(
            [nn.Sequential(nn.Conv2d(3, 6, 3, padding=1)), nn.Sequential(nn.Conv2d(6, 6, 1), nn.SiLU())]
        )
        self.middle_block = nn.Sequential(nn.Conv2d(6, 6, 1))
        self.label_emb = nn.Linear(2, 2)

    def forward(self, x):
        for block in self.input_blocks:
            for layer in block:
                x = layer(x)
        return self.middle_block(x)


def hooks(network):
    return sum(len(module._forward_hooks) for module in network.modules())


X = torch.randn(2, 3, WIDTH, generator=torch.Generator().manual_seed(1))


def test_residual_places_are_the_outputs_of_attention_and_mlp():
    expected = [f"blocks.{i}.{name}" for i in (0, 1) for name in ("attn.to_out.0", "modulation", "mlp.2")]
    assert sorted(places.names(Network(), "residual")) == sorted(expected)
    with observing(network := Network(), places.names(network, "residual")) as seen:
        network(X)  # the modulation gives (B, C), which has no positions
    assert seen == [Place(f"blocks.{i}.{name}", 0, WIDTH, -1) for i in (0, 1) for name in ("attn.to_out.0", "mlp.2")]


def test_all_linear_layers_are_places_and_blocks_are_the_lists_members():
    network = Network()
    assert places.names(network, "linear") == [n for n, m in network.named_modules() if isinstance(m, nn.Linear)]
    assert places.names(network, "block") == ["blocks.0", "blocks.1"]
    with pytest.raises(ValueError, match=r"names: kind is 'layer'; pass one of residual, linear, block"):
        places.names(network, "layer")


def test_a_block_gives_a_place_for_each_of_its_outputs():
    network = Network()
    with observing(network, ["blocks.0"]) as seen:
        network(X)
    assert seen == [Place("blocks.0", 0, WIDTH, -1), Place("blocks.0", 1, WIDTH, -1)]
    assert hooks(network) == 0


def test_of_a_unet_only_what_is_called_is_a_place_and_its_channels_come_first():
    network = UNet()
    wanted = places.names(network, "block")
    assert wanted == [
        "input_blocks.0", "input_blocks.0.0", "input_blocks.1", "input_blocks.1.0", "input_blocks.1.1", "middle_block", "middle_block.0",
    ]  # fmt: skip
    with observing(network, wanted) as seen:
        network(torch.zeros(1, 3, 5, 6))
    found = [(place.name, place.channels, place.axis) for place in seen]
    # A SiLU alone knows nothing of channels. What lies within the middle block, which was called, is left out.
    assert found == [
        ("input_blocks.0.0", 6, 1),
        ("input_blocks.1.0", 6, 1),
        ("input_blocks.1.1", 6, -1),
        ("middle_block", 6, 1),
    ]


def test_a_module_entered_twice_is_no_place():
    network = nn.Sequential(layer := nn.Linear(WIDTH, WIDTH), layer, nn.Linear(WIDTH, WIDTH))
    with observing(network, ["0", "2"]) as seen:
        network(X)
    assert [place.name for place in seen] == ["2"]


def test_common_places_go_by_name_and_width_and_not_by_class():
    class Packed(nn.Module):
        def __init__(self, out_features):
            super().__init__()
            self.out_features = out_features

    full, quantized = Network(), Network()
    for name, features in (("blocks.0.mlp.2", WIDTH), ("blocks.1.mlp.2", WIDTH + 1)):
        parent, _, last = name.rpartition(".")
        setattr(quantized.get_submodule(parent), last, Packed(features))
    common = places.common_names(full, quantized, "residual")
    assert "blocks.0.mlp.2" in common and "blocks.1.mlp.2" not in common
    assert places.find(full, Network()) == ("residual", places.names(full, "residual"))
    assert places.find(full, quantized) == ("block", ["blocks.0", "blocks.1"])
    with pytest.raises(ValueError, match=r"\(Network, UNet\) have no block place in common; load both as one"):
        places.find(full, UNet())


def test_a_place_is_changed_and_what_follows_sees_it():
    network, place = Network(), Place("blocks.0", 1, WIDTH, -1)
    plain = network(X)
    with acting(network, [place], lambda _, y: y + 1) as passed:
        changed = network(X)
    assert passed == {place} and hooks(network) == 0
    context, x = network.blocks[0](torch.zeros(2, 2, WIDTH), network.embed(X), network.embed(X)[:, 0])
    _, expected = network.blocks[1](context, x + 1, (x + 1)[:, 0])
    assert torch.equal(changed, expected) and not torch.equal(changed, plain)
    assert torch.equal(network(X), plain)


def test_an_output_keeps_its_type_and_what_is_not_a_place():
    Pair = namedtuple("Pair", "first second")

    class Gives(nn.Module):
        def __init__(self, kind):
            super().__init__()
            self.inner, self.kind = nn.Identity(), kind

        def forward(self, x):
            return {"pair": Pair(x, None), "list": [x, 7], "tuple": (x, x)}[self.kind]

    for kind, expected in (("pair", Pair), ("list", list), ("tuple", tuple)):
        network = nn.Sequential(Gives(kind))
        with acting(network, [Place("0", 0, WIDTH, -1)], lambda _, y: y * 2):
            found = network(X)
        assert type(found) is expected and torch.equal(found[0], 2 * X)
        if kind != "pair":
            assert found[1] is X or found[1] == 7


def test_an_output_of_another_shape_is_left_alone_and_told():
    network = Network()
    there, other, beyond = (
        Place("blocks.1", 0, WIDTH, -1),
        Place("blocks.0", 1, WIDTH + 1, -1),
        Place("blocks.0", 2, 1, -1),
    )
    with acting(network, [there, other, beyond], lambda _, y: y) as passed:
        found = network(X)
    assert passed == {there} and torch.equal(found, network(X))


@pytest.mark.parametrize("where", ["network", "act", "body"])
def test_no_hook_is_left_after_an_error(where):
    network = Network(broken=where == "network")
    listed = [Place("blocks.0", 1, WIDTH, -1), Place("embed", 0, WIDTH, -1)]

    def act(place, y):
        if where == "act":
            raise RuntimeError("the user pressed Cancel")
        return y

    with pytest.raises(RuntimeError, match="Cancel"), acting(network, listed, act):
        assert hooks(network) == 2
        network(X)
        raise RuntimeError("the user pressed Cancel")
    assert hooks(network) == 0
    with pytest.raises(RuntimeError, match="Cancel"), observing(network, ["blocks.0"]):
        raise RuntimeError("the user pressed Cancel")
    assert hooks(network) == 0


def test_a_missing_module_is_named_and_leaves_no_hook():
    network = Network()
    listed = [Place("embed", 0, WIDTH, -1), Place("blocks.7", 0, WIDTH, -1)]
    wanted = pytest.raises(ValueError, match=r"Network has no module 'blocks\.7' \(1 are missing\)")
    with wanted, acting(network, listed, lambda _, y: y):
        pass
    assert hooks(network) == 0


def test_hooks_that_were_there_stay():
    network = Network()
    handle = network.blocks[0].register_forward_hook(lambda module, _, output: None)
    with acting(network, [Place("blocks.0", 1, WIDTH, -1)], lambda _, y: y + 1):
        network(X)
    assert list(network.blocks[0]._forward_hooks) == [handle.id]


def test_multiply_adds_are_positions_times_in_times_out():
    layer = nn.Linear(3, 5)
    assert places.multiply_adds(layer, layer(torch.zeros(2, 7, 3))) == 2 * 7 * 3 * 5
    with pytest.raises(ValueError, match="GELU is no linear layer"):
        places.multiply_adds(nn.GELU(), X)


@pytest.mark.parametrize("fields", [("a", -1, 4, -1), ("a", 0, 0, -1), ("a", 0, 4, 2)])
def test_a_place_that_cannot_be_is_refused(fields):
    with pytest.raises(ValueError, match="cannot be"):
        Place(*fields)
