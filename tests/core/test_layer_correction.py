"""Offsets inside the network: kept, read at a noise level, added; and found run after run in a closed loop."""

import math

import pytest
import torch
from torch import nn

from gimbal.core.layer_correction import LayerOffsets, Layout, add_offset
from gimbal.core.layer_estimate import ClosedLoop, OutputMeans, even_groups, offsets, position_mean
from gimbal.core.place_hooks import acting
from gimbal.core.places import Place
from gimbal.core.run_means import RunMeans

FIRST, SECOND = Place("0", 0, 2, -1), Place("1", 0, 3, 1)
ENDS = torch.tensor([4.0, 1.0, 0.0], dtype=torch.float64)


def table(dtype=torch.float32):
    rows = torch.tensor([[1.0, 2.0, 3.0, 4.0, 5.0], [3.0, 2.0, 1.0, 0.0, -1.0], [0.0, 0.0, 0.0, 0.0, 8.0]])
    return LayerOffsets((FIRST, SECOND), ENDS, rows.to(dtype))


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# Adding.


@pytest.mark.parametrize("shape, axis", [((2, 7, 3), -1), ((2, 4, 5, 3), -1), ((2, 3, 4, 5), 1), ((1, 3, 2, 4, 5), 1)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_each_channel_gets_its_offset(shape, axis, dtype):
    y, offset = randn(*shape).to(dtype), torch.tensor([1.0, -2.0, 0.5])
    found = add_offset(y, offset, axis)
    assert found.dtype == dtype
    for channel in range(3):
        assert torch.equal(found.select(axis, channel), y.select(axis, channel) + offset[channel].item())


def test_another_number_of_channels_is_refused():
    with pytest.raises(ValueError, match=r"add_offset: y has 4 channels of \(2, 3, 4\) at dimension -1, offset 3"):
        add_offset(torch.zeros(2, 3, 4), torch.zeros(3))


def test_places_get_their_part_of_the_row_times_strength():
    act = table().acting(8.0, strength=0.5)
    assert torch.equal(act(FIRST, torch.zeros(1, 1, 2)), torch.tensor([[[0.5, 1.0]]]))
    assert torch.equal(act(SECOND, torch.zeros(1, 3, 1)), torch.tensor([[[1.5], [2.0], [2.5]]]))


def test_strength_0_gives_the_very_tensor_back():
    y = randn(1, 4, 2)
    assert table().acting(1.0, strength=0.0)(FIRST, y) is y
    with pytest.raises(ValueError, match="strength is nan"):
        table().acting(1.0, math.nan)


# Reading at a noise level.


@pytest.mark.parametrize("sigma, row", [(1e3, 0), (4.01, 0), (4.0, 1), (1.5, 1), (1.0, 2), (0.3, 2), (0.0, 2)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_row_serves_its_range(sigma, row, dtype):
    assert torch.equal(table(dtype).at(sigma), table().offset[row])
    assert torch.equal(table(dtype).at(torch.full((2,), sigma)), table().offset[row])


def test_it_moves_with_the_offsets_and_keeps_their_dtype():
    moved = table().to("cpu", torch.bfloat16)
    assert moved.offset.dtype == torch.bfloat16 and moved.at(4.0).dtype == torch.float32
    assert torch.equal(moved.at(1.5), table().at(1.5))
    assert table().to("meta").at(torch.ones(1, device="meta")).device.type == "meta"


def test_one_range_serves_all():
    alone = LayerOffsets((FIRST,), ENDS[2:], torch.tensor([[1.0, 2.0]]))
    for sigma in (1e-3, 8.0, 1e3):
        assert torch.equal(alone.at(sigma), alone.offset[0])


@pytest.mark.parametrize(
    "change, words",
    [
        ({"sigma_end": ENDS.flip(0)}, "fall strictly"),
        ({"sigma_end": ENDS.float()}, r"sigma_end is float32 \(3,\)"),
        ({"sigma_end": ENDS + 1}, "to 0"),
        ({"offset": torch.zeros(3, 4)}, r"offset is float32 \(3, 4\); 3 ranges and these 2 places need \(3, 5\)"),
        ({"offset": torch.full((3, 5), math.nan)}, "NaN or infinity"),
        ({"places": (FIRST, FIRST)}, "none may be missing or twice"),
    ],
)
def test_a_table_that_cannot_be_is_refused(change, words):
    good = {"places": (FIRST, SECOND), "sigma_end": ENDS, "offset": torch.zeros(3, 5)}
    with pytest.raises(ValueError, match=words):
        LayerOffsets(**{**good, **change})


def test_the_file_has_it_all_and_is_checked():
    tensors, metadata = table().to_file()
    assert tensors["layer_offset"].dtype == torch.bfloat16 and tensors["layer_sigma_end"].dtype == torch.float64
    again = LayerOffsets.from_file(tensors, metadata)
    assert again.places == (FIRST, SECOND) and torch.equal(again.sigma_end, ENDS)
    assert torch.equal(again.offset.float(), table().offset)  # small whole numbers
    assert LayerOffsets.from_file({}, {"else": ""}) is None
    with pytest.raises(ValueError, match="of its three parts the file has layer_sigma_end, layer_places only"):
        LayerOffsets.from_file({"layer_sigma_end": ENDS}, metadata)
    for broken in ("[", "[1]", '[["a", 0]]', '[["a", 0, 2, 5]]'):
        with pytest.raises(ValueError, match="layer_places cannot be read"):
            LayerOffsets.from_file(tensors, {"layer_places": broken})


def test_large_channels_survive_the_file():
    huge = LayerOffsets((FIRST,), ENDS[2:], torch.tensor([[3e5, 1e-6]]))
    again = LayerOffsets.from_file(*huge.to_file())
    torch.testing.assert_close(again.offset.float(), huge.offset, rtol=2**-8, atol=0)


def test_some_places_alone():
    assert torch.equal(table().only([SECOND]).offset, table().offset[:, 2:])
    with pytest.raises(ValueError, match="has no offsets here"):
        table().only([Place("2", 0, 2, -1)])


@pytest.mark.parametrize("axis, shape", [(-1, (2, 3, 5, 4)), (1, (2, 4, 3, 5))])
def test_means_over_positions_need_no_wide_copy_of_half_precision(axis, shape):
    y = randn(*shape).half() + 1
    expected = torch.stack([y.select(axis, c).double().flatten(1).mean(1) for c in range(4)], 1)
    found = position_mean(y, axis)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6)


# Closed loop on a small network.


class Stack(nn.Module):
    """Linear layers with a residual; `fault` is added to each one's output, as quantization would."""

    def __init__(self, fault=0.0):
        super().__init__()
        torch.manual_seed(3)
        self.layers = nn.ModuleList([nn.Linear(6, 6) for _ in range(3)])
        self.fault = [fault * randn(6, seed=10 + i) for i in range(3)]

    def forward(self, x):
        for layer in self.layers:
            x = x + layer(x)
        return x


class Rounded(Stack):
    def __init__(self, fault=0.5):
        super().__init__(fault)
        for layer, fault in zip(self.layers, self.fault, strict=True):
            layer.bias.data += fault


LISTED = [Place(f"layers.{i}", 0, 6, -1) for i in range(3)]
GROUPS = [0, 0, 1]


def one_run(seed, full, quantized, earlier, groups=GROUPS):
    """Full precision's means and the closed loop, from the same inputs at each level: cond and uncond as two chunks."""
    layout = Layout(LISTED)
    inputs = [randn(4, 5, 6, seed=100 * seed + level) for level in range(len(groups))]
    means = OutputMeans(layout, len(groups))
    for level, x in enumerate(inputs):
        with acting(full, LISTED, means.at(level, [1, 0])):
            full(x)
    loop = ClosedLoop(layout, groups, means.values(), earlier)
    outputs = []
    for level, x in enumerate(inputs):
        with acting(quantized, LISTED, loop.at(level, [1, 0])):
            outputs.append(quantized(x) - full(x))
    return loop, outputs


@torch.no_grad()
def test_a_constant_fault_is_found_exactly_where_it_arises():
    """The loop is closed: no layer takes out what an earlier one has handed on and that was taken out there."""
    full, quantized = Stack(), Rounded()
    loop, left = one_run(1, full, quantized, RunMeans((2, 18)))
    expected = -torch.cat(quantized.fault)
    for row in loop.difference():
        torch.testing.assert_close(row, expected, rtol=0, atol=1e-5)
    assert max(float(each.abs().max()) for each in left) < 1e-5
    runs = RunMeans((2, 18)).with_run(loop.difference())
    found = offsets(Layout(LISTED), [9.0, 4.0, 1.0], GROUPS, runs)
    torch.testing.assert_close(found.sigma_end, torch.tensor([2.0, 0.0]).double())
    x = randn(2, 5, 6, seed=7)
    plain = (quantized(x) - full(x)).abs().max()
    with acting(quantized, LISTED, found.acting(4.0)):
        corrected = quantized(x)
    assert float((corrected - full(x)).abs().max()) < 1e-4 * float(plain)


@torch.no_grad()
def test_run_after_run_is_the_plain_mean_of_what_each_run_has_left():
    """A reference in a plain loop: every layer's difference with earlier corrections on, averaged and shrunk."""
    full, quantized = Stack(), Rounded()
    quantized.layers[1].weight.data += 0.1 * randn(6, 6, seed=20)  # a fault that depends on the input
    earlier, differences = RunMeans((2, 18)), []
    for seed in range(3):
        expected = reference(seed, full, quantized, differences)
        loop, _ = one_run(seed, full, quantized, earlier)
        torch.testing.assert_close(loop.difference(), expected, rtol=1e-4, atol=1e-5)
        differences.append(expected)
        earlier = earlier.with_run(loop.difference())
    stacked = torch.stack(differences)
    error = stacked.std(0) / 3**0.5
    expected = stacked.mean(0) * (1 - error**2 / stacked.mean(0) ** 2).clamp(min=0)
    found = offsets(Layout(LISTED), [9.0, 4.0, 1.0], GROUPS, earlier)
    torch.testing.assert_close(found.offset, expected, rtol=1e-3, atol=1e-4)


def reference(seed, full, quantized, before):
    sums, counts = torch.zeros(2, 18), [0, 0]
    for level, group in enumerate(GROUPS):
        x = y = randn(4, 5, 6, seed=100 * seed + level)
        counts[group] += 1
        for i in range(3):
            a, b = full.layers[i](x), quantized.layers[i](y)
            columns = slice(6 * i, 6 * i + 6)
            sums[group, columns] += (a - b).mean((0, 1))
            runs = torch.stack([*(each[group, columns] for each in before), sums[group, columns] / counts[group]])
            mean = runs.mean(0)
            if len(runs) > 1:
                mean = mean * (1 - runs.var(0) / len(runs) / mean**2).clamp(min=0)
            x, y = x + a, y + b + mean
    return sums / torch.tensor(counts)[:, None]


@torch.no_grad()
def test_branches_called_apart_give_what_one_call_of_both_gives():
    full, layout = Stack(), Layout(LISTED)
    x = randn(4, 5, 6)
    together, apart = (OutputMeans(layout, 1) for _ in range(2))
    with acting(full, LISTED, together.at(0, [1, 0])):
        full(x)
    for branch, chunk in zip([1, 0], x.chunk(2), strict=True):
        with acting(full, LISTED, apart.at(0, [branch])):
            full(chunk)
    torch.testing.assert_close(apart.values(), together.values())
    mean = (full.layers[0](x[2:])).mean((0, 1))
    torch.testing.assert_close(together.values()[0, 0, :6], mean)


@torch.no_grad()
def test_without_a_negative_prompt_the_other_branch_takes_its_mean():
    full, means = Stack(), OutputMeans(Layout(LISTED), 1)
    with acting(full, LISTED, means.at(0, [0])):
        full(randn(2, 5, 6))
    assert torch.equal(means.values()[0, 0], means.values()[0, 1])


def test_a_run_that_was_cut_short_is_refused():
    layout, full = Layout(LISTED), torch.zeros(3, 2, 18)
    means = OutputMeans(layout, 2)
    means.at(0, [0])(LISTED[0], torch.zeros(1, 2, 6))
    with pytest.raises(ValueError, match=r"layers\.1 was not passed at level 1 of 2 \(5 such\)"):
        means.values()
    loop = ClosedLoop(layout, GROUPS, full, RunMeans((2, 18)))
    loop.at(0, [0])(LISTED[0], torch.zeros(1, 2, 6))
    with pytest.raises(ValueError, match="5 of 6 means were not measured"):
        loop.difference()


def test_what_does_not_fit_a_loop_is_refused():
    layout = Layout(LISTED)
    with pytest.raises(ValueError, match=r"full is \(2, 2, 18\); pass \(3, branches, 18\)"):
        ClosedLoop(layout, GROUPS, torch.zeros(2, 2, 18), RunMeans((2, 18)))
    for groups, rows in (([0, 0, 2], 2), (GROUPS, 3)):
        with pytest.raises(ValueError, match="do not fit"):
            ClosedLoop(layout, groups, torch.zeros(3, 2, 18), RunMeans((rows, 18)))
    with pytest.raises(ValueError, match=r"layers\.0: a batch of 3 does not divide into 2 chunks"):
        OutputMeans(layout, 1).at(0, [0, 1])(LISTED[0], torch.zeros(3, 1, 6))
    with pytest.raises(ValueError, match="there are no runs"):
        offsets(layout, [1.0], [0], RunMeans((1, 18)))
    with pytest.raises(ValueError, match="must follow in order"):
        offsets(layout, [2.0, 1.0], [1, 0], RunMeans((2, 18)).with_run(torch.zeros(2, 18)))


def test_groups_are_even():
    assert even_groups(5, 2) == [0, 0, 0, 1, 1]
    assert even_groups(20, 4) == [i // 5 for i in range(20)]
    assert even_groups(3, 3) == [0, 1, 2]
    for groups in (0, 4):
        with pytest.raises(ValueError, match="pass 1 to 3"):
            even_groups(3, groups)


# A window.


def test_a_window_cuts_the_rows_and_keeps_the_levels_within():
    cut = table().within(3.0, 0.5)
    for sigma in (0.5, 0.9, 1.0, 1.5, 2.0, 3.0):
        assert torch.equal(cut.at(sigma), table().at(sigma)), sigma
    for sigma in (0.0, 0.49, 3.01, 4.0, 8.0):
        assert not cut.at(sigma).any(), sigma
    assert cut.places == table().places


def test_a_window_over_everything_changes_no_row():
    whole = table().within(1e9, 0.0)
    for sigma in (0.1, 1.0, 2.0, 4.0, 1e3):
        assert torch.equal(whole.at(sigma), table().at(sigma)), sigma


def test_a_window_that_rises_is_refused():
    for high, low in ((1.0, 2.0), (1.0, -0.1), (math.nan, 0.0)):
        with pytest.raises(ValueError, match="pass levels that fall"):
            table().within(high, low)
