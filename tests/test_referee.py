"""The referee of guidance rules: what its candidates do, and that its document says what the stored rows say."""

import json
import math
from functools import partial
from pathlib import Path

import pytest
import torch
from evidence import referee, referee_parts, referee_report, report, stabilise_report, stabilise_search, steering
from evidence.table import Part

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "evidence" / "results"


def predictions(seed=0):
    generator = torch.Generator().manual_seed(seed)
    cond, uncond = torch.randn(2, 3, 4, 8, 8, generator=generator) * 2 + 0.7
    return cond - uncond, cond


def test_candidates_treat_samples_independently():
    g, cond = predictions()
    extras = [
        partial(steering.weighted, weights=steering.samg_weights),
        partial(steering.clamped, share=0.05),
        partial(steering.orthogonal, keep=0.0),
        partial(steering.bands, low=1.0, high=0.5),
        partial(steering.shrunk, share=1.0),
        partial(steering.compressed, knee=1.0),
        partial(steering.plane_weights, power=0.5),
    ]
    for extra in extras:
        whole = extra(g, cond)
        assert not torch.equal(whole, g)
        for i in range(len(g)):
            torch.testing.assert_close(whole[i : i + 1], extra(g[i : i + 1], cond[i : i + 1]))


@pytest.mark.parametrize("weights", [steering.samg_weights, steering.swapped_weights])
def test_weights_of_mean_one_change_where_and_not_how_much(weights):
    g, cond = predictions()
    used = steering.weighted(g, cond, weights) / g
    torch.testing.assert_close(used.mean((1, 2, 3)), torch.ones(3))
    assert float(used.std()) > 0.1


def test_decorrelated_guidance_leaves_each_channels_deviation_to_first_order():
    g, cond = predictions()
    changed = steering.orthogonal(g, cond, 0.0, steering.SPACE, centre=True)
    centred = cond - cond.mean((2, 3), keepdim=True)
    torch.testing.assert_close((changed * centred).sum((2, 3)), torch.zeros(3, 4), atol=1e-3, rtol=0)
    small = 1e-3
    before, after = cond.std((2, 3)), (cond + small * changed).std((2, 3))
    assert float((after / before - 1).abs().max()) < 10 * small**2
    torch.testing.assert_close(steering.orthogonal(g, cond, 1.0, steering.SPACE, centre=True), g)


def test_a_limit_with_moments_restored_keeps_each_channels_mean_and_deviation():
    _, x = predictions()
    y = steering.same_moments(steering.hard(0.05), x)
    assert not torch.equal(x, y)
    torch.testing.assert_close(y.mean((2, 3)), x.mean((2, 3)))
    torch.testing.assert_close(y.std((2, 3)), x.std((2, 3)))


def test_bands_add_up():
    g, cond = predictions()
    torch.testing.assert_close(steering.bands(g, cond, 1.0, 1.0), g)


def rows_of(distance, strength):
    return {
        "fd_features": distance,
        "fd_pixels": 2 * distance,
        "contrast": strength,
        "spread": 3 * strength,
        "margin": strength,
    }


@pytest.fixture
def stored(tmp_path):
    """Plain guidance whose distance is exp(cfg / 10) at contrast cfg / 20, and a rule a tenth below it at 7 / 20."""

    def stored(factor):
        row = referee.Row("APG", referee_parts.GUIDANCE)
        for seed in range(3):
            runs = {
                referee.Row(referee.PLAIN, c).name: rows_of(math.exp(c / 10 + seed), c / 20)
                for c in referee_parts.CURVE
            }
            runs[row.name] = rows_of(factor * (1 + 0.01 * seed) * math.exp(0.65 + seed), 6.5 / 20)
            path = tmp_path / f"referee-seed{seed}.json"
            path.write_text(json.dumps({"about": {"seed": seed}, "runs": runs}), encoding="utf-8")
        return Part(tmp_path, "referee"), row

    return stored


@pytest.mark.parametrize(("factor", "word"), [(0.9, "better"), (1.2, "worse"), (0.99, "no difference")])
def test_a_rule_is_compared_with_plain_guidance_of_its_own_contrast(stored, factor, word):
    part, row = stored(factor)
    found = referee_report.ratio(part, row, "contrast", "fd_features")
    assert found.mean == pytest.approx(math.log(factor) + math.log(1.01 * 1.02) / 3, abs=1e-3)
    assert found.n == 3
    assert referee_report.word(part, row) == word


def test_every_rule_and_every_candidate_has_stored_rows():
    part = Part(RESULTS, "referee")
    rules = {*referee.OURS, *referee.PEERS, *referee_parts.FINALISTS} - {*referee_parts.LATER}
    assert part.seeds >= 3
    assert not [rule for rule in rules if referee.Row(rule, referee_parts.GUIDANCE).name not in part]
    first = part.stored[referee_parts.SCREENED]["runs"]
    assert not [row.name for row in referee_parts.first(referee_parts.SCREENED) if row.name not in first]


@pytest.mark.parametrize("name", sorted(referee_parts.PARTS))
def test_every_part_is_complete(name):
    part, made = referee_parts.PARTS[name], Part(RESULTS, name)
    seeds = [stored["about"]["seed"] for stored in made.stored]
    assert seeds == [*part.seeds]
    wanted = {seed: {row.name for row in part.rows(seed)} for seed in seeds}
    if name == "referee":  # its first seed has more
        wanted |= dict.fromkeys(seeds[1:], wanted[seeds[-1]])
    assert not [
        (seed, row)
        for seed, stored in zip(seeds, made.stored, strict=True)
        for row in wanted[seed] - {*stored["runs"]}
    ]


def test_what_confirms_stabilise_is_of_seeds_that_chose_nothing():
    final = {*referee_parts.PARTS["referee-final"].seeds}
    assert len(final) >= 7
    for name in ("referee", "referee-search", "referee-confirmed", "referee-second", "referee-third"):
        assert not final & {*referee_parts.PARTS[name].seeds}


def test_the_rows_are_of_stabilises_defaults():
    from gimbal.core.stabilise import DEFAULT, Factors

    assert Factors(**referee.DEFAULTS) == DEFAULT


def test_plain_factors_are_plain_guidance_and_what_is_tried_beside_them_is_not():
    g, cond = predictions()
    noisy = torch.randn(cond.shape, generator=torch.Generator().manual_seed(1)) + cond
    plain = stabilise_search.Tried(1.0, 1.0, 0.0)
    torch.testing.assert_close(plain.extra(cond, cond - g, noisy), g)
    for option in ("fine", "coarse", "energy", "limit", "decorrelated"):
        changed = stabilise_search.Tried(1.0, 1.0, 0.0, **{option: 0.5}).extra(cond, cond - g, noisy)
        assert not torch.allclose(changed, g), option


def test_every_candidate_has_a_name_of_its_own():
    trials = {(tried, cfg) for tried, cfg, _ in stabilise_search.trials()}
    assert len({(tried.name, cfg) for tried, cfg in trials}) == len(trials) >= 40


def test_the_document_is_what_the_stored_rows_give():
    document = (ROOT / "docs" / "EQUAL_STRENGTH.md").read_text(encoding="utf-8")
    tables = referee_report.tables(RESULTS) | stabilise_report.tables(RESULTS)
    assert report.updated(document, tables) == document
