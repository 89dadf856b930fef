"""Errors over depth: what is measured inside a network, and that the document says what the stored rows say."""

import json
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from evidence import depth, depth_models, depth_report, report
from evidence.formats import NumberFormat
from evidence.table import Part
from torch import nn

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "evidence" / "results"
DEPTH, WIDTH = 3, 16


class Network(nn.Module):
    """Residual blocks on a stream (N, positions, WIDTH); the velocity is read off its end."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.blocks = nn.ModuleList(Block(torch.randn(WIDTH, WIDTH, generator=generator) / 8) for _ in range(DEPTH))

    def forward(self, x, level, context):
        stream = x.flatten(2).transpose(1, 2) + context
        for block in self.blocks:
            stream = block(stream)
        return stream.transpose(1, 2).reshape(x.shape) * (level / 1000).view(-1, 1, 1, 1)


class Block(nn.Module):
    def __init__(self, weight):
        super().__init__()
        self.weight = nn.Parameter(weight, requires_grad=False)

    def forward(self, stream):
        return stream + stream @ self.weight


def shifted(by):
    """A format whose rounding adds a constant to each weight of the blocks."""

    def quantize(network):
        found = deepcopy(network)
        for block in found.blocks:
            block.weight += by
        return found

    return NumberFormat("shifted", quantize)


@pytest.fixture
def subject():
    def context(prompts):
        return {"context": torch.tensor([float(len(prompt)) for prompt in prompts])[:, None, None]}

    with torch.inference_mode():
        network = Network()
    blocks = lambda network: network.blocks  # noqa: E731
    shape = (WIDTH, 16, 16)
    return depth_models.Subject("test", None, network, shape, ["a"], ["bc", "d"], context, blocks, Path())


@torch.inference_mode()
def test_errors_inside_are_those_of_a_plain_loop(subject):
    form, seed = shifted(0.02), 1
    found = depth.growth(subject, form, seed)
    rounded = form.quantize(subject.network)
    totals = dict.fromkeys(found, 0.0)

    def relative(ours, theirs):
        centred = theirs - theirs.flatten(0, 1).mean(0)
        return float(((ours - theirs) ** 2).mean() / (centred**2).mean())

    def streams(networks, x, context):
        stream, passed = x.flatten(2).transpose(1, 2) + context["context"], []
        for i, network in enumerate(networks):
            stream = stream + stream @ network.blocks[i].weight
            passed.append(stream)
        return passed

    for x, sigma, context in depth._states(subject, seed):
        full = streams([subject.network] * DEPTH, x, context)
        every = streams([rounded] * DEPTH, x, context)
        for i in range(DEPTH):
            alone = streams([rounded if each == i else subject.network for each in range(DEPTH)], x, context)
            totals[f"after {i + 1}"] += relative(every[i], full[i])
            totals[f"own {i + 1}"] += relative(alone[i], full[i])
            totals[f"alone {i + 1}"] += relative(sigma * alone[-1], sigma * full[-1])
        totals["output"] += relative(sigma * every[-1], sigma * full[-1])
    expected = {name: total / len(depth.LEVELS) for name, total in totals.items()}
    assert found == pytest.approx(expected, rel=1e-4)
    assert found["after 1"] == pytest.approx(found["own 1"]) and found["after 3"] > found["after 1"] > 0


@torch.inference_mode()
def test_an_exact_format_has_no_error(subject):
    assert set(depth.growth(subject, shifted(0.0), 0).values()) == {0.0}


@torch.inference_mode()
def test_one_block_alone_is_exchanged_in_a_copy(subject):
    rounded = shifted(1.0).quantize(subject.network)
    before = deepcopy(subject.network.state_dict())
    mixed = depth._with_block(subject, subject.network, rounded, 1).state_dict()
    changed = [name for name, value in before.items() if not torch.equal(mixed[name], value)]
    assert changed == ["blocks.1.weight"]
    assert all(torch.equal(value, before[name]) for name, value in subject.network.state_dict().items())


def test_every_row_is_stored_for_three_seeds_or_more():
    for subject in depth_report.SUBJECTS:
        part = Part(RESULTS, depth_report.part(subject))
        assert part.seeds >= 3 and set(part.names) == {depth.name(*row) for row in depth.rows()}
        assert len({each["about"]["model"] for each in part.stored}) == 1


def test_the_document_is_what_the_stored_rows_give():
    document = (ROOT / "docs" / "DEPTH.md").read_text(encoding="utf-8")
    assert report.updated(document, depth_report.tables(RESULTS)) == document


def test_shares_and_sums_are_taken_seed_by_seed(tmp_path):
    form = depth.FORMATS[0]
    for seed, (output, alone, plain, left) in enumerate([(0.6, (0.1, 0.2), 1.0, 0.5), (0.5, (0.2, 0.3), 2.0, 0.2)]):
        inside = {"output": output, "alone 1": alone[0], "alone 2": alone[1]}
        rows = {depth.GROWTH: inside, depth.PLAIN: {"error": plain}, "layers": {"error": left}}
        stored = {"about": {"seed": seed}, "runs": {depth.name(form, what): row for what, row in rows.items()}}
        (tmp_path / f"depth-x-seed{seed}.json").write_text(json.dumps(stored), encoding="utf-8")
    part = Part(tmp_path, "depth-x")
    assert depth_report.summed(part, form, 2).mean == pytest.approx(0.4)
    assert depth_report.compounded(part, form, 2).mean == pytest.approx(1.5)  # of 2 and 1
    share = depth_report.ratio(part, form, "layers")
    assert (share.mean, share.error) == (pytest.approx(0.3), pytest.approx(0.2))
    assert depth_report.share(part, form, "layers") == "30 ± 20 %"
