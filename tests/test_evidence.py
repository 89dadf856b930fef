"""The mathematics of the evidence benchmark, and that its report says what the stored numbers say."""

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import scipy.stats
import torch
from evidence import bands, calibrate, formats, metrics, table, verdicts

from gimbal.core.solvers import make_plan, run

ROOT = Path(__file__).resolve().parent.parent
BENCHMARKS = ROOT / "benchmarks"


def features(seed, count=300, width=7, scale=1.0, shift=0.0):
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(width, width, generator=generator)
    return scale * torch.randn(count, width, generator=generator) @ mixing + shift


def test_frechet_distance_equals_the_textbook_formula():
    a, b = features(0).double().numpy(), features(1, scale=1.5, shift=0.3).double().numpy()
    cov_a, cov_b = np.cov(a.T), np.cov(b.T)
    root = scipy.linalg.sqrtm(cov_a @ cov_b).real
    expected = np.square(a.mean(0) - b.mean(0)).sum() + np.trace(cov_a + cov_b - 2 * root)
    pair = [metrics.Gaussian.of(torch.from_numpy(x)) for x in (a, b)]
    assert metrics.frechet(*pair) == pytest.approx(expected, rel=1e-9)
    assert metrics.frechet(*reversed(pair)) == pytest.approx(expected, rel=1e-9)


def test_frechet_distance_of_known_gaussians():
    """Diagonal ones: |difference of means|^2 + sum of (difference of standard deviations)^2 = 3^2 + 1^2 + 2^2."""
    a = metrics.Gaussian(torch.zeros(2, dtype=torch.float64), torch.diag(torch.tensor([1.0, 4.0]).double()))
    b = metrics.Gaussian(torch.tensor([3.0, 0.0]).double(), torch.diag(torch.tensor([4.0, 16.0]).double()))
    assert metrics.frechet(a, b) == pytest.approx(14.0)
    assert metrics.frechet(a, a) == pytest.approx(0.0, abs=1e-12)


def test_frechet_distance_of_fewer_samples_than_dimensions():
    few = metrics.Gaussian.of(features(0, count=4))
    many = metrics.Gaussian.of(features(0))
    assert math.isfinite(metrics.frechet(few, many)) and metrics.frechet(few, few) == pytest.approx(0.0, abs=1e-4)


def test_paired_error_and_interval_are_those_of_the_t_test():
    ours, base = [3.0, 5.0, 4.0, 8.0, 6.0], [2.5, 5.5, 3.0, 6.0, 5.0]
    found = metrics.paired(ours, base)
    test = scipy.stats.ttest_rel(ours, base)
    interval = test.confidence_interval(0.95)
    assert found.n == 5 and found.mean == pytest.approx(0.8)
    assert found.mean / found.error == pytest.approx(test.statistic)
    assert (found.mean - found.half, found.mean + found.half) == pytest.approx((interval.low, interval.high))


def test_word_follows_the_interval():
    assert metrics.estimate([-1.0, -1.1, -0.9]).word == "better"
    assert metrics.estimate([1.0, 1.1, 0.9]).word == "worse"
    assert metrics.estimate([1.0, -1.0, 0.5]).word == "no difference"
    assert metrics.estimate([5.0]).word == "no difference"  # one seed shows nothing
    assert metrics.estimate([0.0, 0.0]).word == "no difference"
    assert metrics.estimate([math.nan]).n == 0


@pytest.mark.parametrize(
    ("x", "expected"),
    [(0.5, 12.0), (0.6, 15.0), (0.7, 18.0), (0.8, 24.0), (0.85, 27.0), (0.4, math.nan), (0.95, math.nan)],
)
def test_value_at_equal_accuracy(x, expected):
    """Through (0.5, 12), (0.7, 18), (0.9, 30): 3 a tenth, then 6 a tenth; outside there is nothing."""
    assert metrics.at_equal(x, [0.5, 0.7, 0.9], [12.0, 18.0, 30.0]) == pytest.approx(expected, nan_ok=True)


def test_a_flat_or_returning_curve_has_no_value_at_equal_accuracy():
    assert math.isnan(metrics.at_equal(0.9, [0.5, 0.9, 0.9], [1.0, 2.0, 3.0]))
    assert math.isnan(metrics.at_equal(0.8, [0.5, 0.9, 0.7], [1.0, 2.0, 3.0]))
    assert metrics.at_equal(0.6, [0.5, 0.9, 0.7], [1.0, 5.0, 3.0]) == pytest.approx(2.0)


def test_tails_and_kurtosis():
    latents = torch.zeros(2, 1, 4, 5)
    latents.flatten()[:2] = torch.tensor([9.0, -9.0])
    assert metrics.tail_share(latents, torch.zeros(1), torch.tensor([2.0])) == pytest.approx(2 / 40)
    assert metrics.tail_share(latents, torch.zeros(1), torch.tensor([2.25])) == 0.0  # at 4 exactly
    assert metrics.kurtosis(latents) == pytest.approx(20.0)  # 40 values, 2 of them out: 1 / (2 / 40)
    normal = torch.randn(8, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    assert metrics.kurtosis(5 * normal + 2) == pytest.approx(3.0, abs=0.1)


def stored_part(folder, seeds):
    """seeds: the rows of each, measures by name."""
    for seed, rows in enumerate(seeds):
        (folder / f"part-seed{seed}.json").write_text(json.dumps({"about": {}, "runs": rows}))
    return table.Part(folder, "part")


def test_results_are_paired_by_seed_and_rows_that_a_seed_lacks_left_out(tmp_path):
    first = {"plain": {"fd": 1.0}, "ours": {"fd": 0.5}}
    second = {"plain": {"fd": 3.0}, "ours": {"fd": 2.0}, "late": {"fd": 0.0}}
    part = stored_part(tmp_path, [first, second])
    assert part.names == ["plain", "ours"] and part.seeds == 2
    assert part.change("ours", "plain", "fd").mean == pytest.approx(-0.75)


def test_change_as_a_factor_is_the_mean_of_logarithms(tmp_path):
    """Half and an eighth of the base: a quarter, the logarithms ln 2 either side of its own."""
    part = stored_part(tmp_path, [{"plain": {"mse": 1.0}, "ours": {"mse": ours}} for ours in (0.5, 0.125)])
    change = part.log_change("ours", "plain", "mse")
    assert (math.exp(change.mean), change.error) == pytest.approx((0.25, math.log(2)))


def test_change_against_a_curve_seed_by_seed_and_pooled(tmp_path):
    """Curves y = 10 x + seed, rows 0.5 above them: both ways 0.5, without error, and nothing where no curve is."""
    seeds = [{f"curve {x}": {"x": x, "y": 10.0 * x + seed} for x in (0.0, 1.0, 2.0)} for seed in range(3)]
    for seed, rows in enumerate(seeds):
        rows |= {"ours": {"x": 0.7 + 0.1 * seed, "y": 7.5 + 2 * seed}, "beyond": {"x": 3.0, "y": 0.0}}
    part, curve = stored_part(tmp_path, seeds), [f"curve {x}" for x in (0.0, 1.0, 2.0)]
    for change in (part.against_curve, part.pooled_against_curve):
        assert change("ours", curve, "x", "y")[:2] == pytest.approx((0.5, 0.0), abs=1e-9)
        assert change("beyond", curve, "x", "y").n == 0


def test_jackknife_of_a_mean_is_its_standard_error(tmp_path):
    """Where the curve is flat in y the pooled change is a plain mean, 2, of 1, 2 and 3: error sqrt(1 / 3)."""
    flat = {"a": {"x": 0.0, "y": 5.0}, "b": {"x": 1.0, "y": 5.0}}
    part = stored_part(tmp_path, [flat | {"ours": {"x": 0.5, "y": 6.0 + seed}} for seed in range(3)])
    found = part.pooled_against_curve("ours", ["a", "b"], "x", "y", log=True)
    assert (found.mean, found.error) == pytest.approx((2.0, math.sqrt(1 / 3)))


def test_a_root_over_seeds_is_pooled_before_it_is_taken(tmp_path):
    """So that a seed whose estimate is below 0 counts against the others."""
    part = stored_part(tmp_path, [{"row": {"of": value}} for value in (4.0, -4.0, 8.0, 8.0)])
    assert part.root_mean("row", "of").mean == pytest.approx(2.0, rel=0.2)
    assert stored_part(tmp_path, [{"row": {"of": -1.0}}] * 4).root_mean("row", "of").mean == 0.0


def test_numbers_have_as_many_digits_as_their_error():
    assert table.number(1.23456, 0.0123) == "1.235 ± 0.012"
    assert table.number(123.456, 4.5) == "123.5 ± 4.5"
    assert table.number(-0.5, 0.25, sign=True) == "-0.50 ± 0.25"
    assert table.number(math.nan) == "-"


BETTER, WORSE, SAME = (metrics.estimate(values) for values in ([-1.0, -1.1], [1.0, 1.1], [-1.0, 1.1]))


@pytest.mark.parametrize(
    ("claimed", "expected"),
    {
        "better": [1, 0, -1],
        "worse": [-1, 0, 1],
        "no difference": [-1, 1, -1],
        "not better": [-1, 1, 1],
        "not worse": [1, 1, -1],
    }.items(),
)
def test_a_comparison_votes_on_a_claimed_sign(claimed, expected):
    assert verdicts.votes([BETTER, SAME, WORSE], claimed) == expected


@pytest.mark.parametrize(
    ("mean", "half", "expected"),
    [
        (1.45, 0.01, 1),
        (1.505, 0.02, 0),
        (1.49, 0.02, 1),
        (1.49, 0.005, 0),
        (1.52, 0.001, 0),
        (1.2, 0.1, 0),
        (1.05, 0.1, -1),  # holds the ratio at which nothing would be claimed
        (0.8, 0.1, -1),
        (1.0, 3.0, 1),  # an interval that holds everything contradicts nothing
        (1.45, math.nan, 0),
    ],
)
def test_a_value_votes_on_a_claimed_range(mean, half, expected):
    value = metrics.Estimate(mean, half / 2, half, 5)
    assert verdicts.range_vote(value, 1.43, 1.48, neutral=1.0) == expected


def test_a_claimed_threshold_is_a_range_without_an_end():
    """At least 45, at most 25: what lies wholly beyond speaks against it."""
    values = [metrics.Estimate(mean, 0.5, 1.0, 5) for mean in (50.0, 44.5, 36.0, 20.0)]
    assert [verdicts.range_vote(value, 45.0, math.inf, 45.0) for value in values] == [1, 1, -1, -1]
    assert [verdicts.range_vote(value, -math.inf, 25.0, 25.0) for value in values] == [-1, -1, -1, 1]


@pytest.mark.parametrize(
    ("cast", "claim", "question"),
    [
        ([1, 1], "reproduced", "better"),
        ([1, 0], "reproduced in part", "better in part"),
        ([0, 0], "not reproduced", "no difference"),
        ([1] + 10 * [0], "not reproduced", "no difference"),
        ([1] + 9 * [0], "reproduced in part", "better in part"),
        ([-1, 0], "refuted in part", "worse in part"),
        ([-1, -1], "refuted", "worse"),
        ([1, 0, -1], "mixed", "mixed"),
        ([1, 1, -1], "mixed, mostly reproduced", "mixed, mostly better"),
        ([1, -1, -1, 0], "mixed, mostly refuted", "mixed, mostly worse"),
        ([], "cannot be judged", "cannot be judged"),
    ],
)
def test_one_rule_makes_every_verdict(cast, claim, question):
    assert verdicts.verdict(cast) == claim
    assert verdicts.verdict(cast, verdicts.QUESTION) == question


def test_a_scale_outside_the_claimed_range_is_not_reproduced():
    """SAMG's mean scale: 1.49 to 1.52 with narrow intervals, where 1.43 to 1.48 was claimed."""
    from evidence import samg_report

    part = table.Part(BENCHMARKS / "evidence" / "results", "samg")
    (found,) = [row for row in samg_report.findings(part) if "mean scale" in row[0]]
    assert found[1:] == ("1.49 to 1.52", "not reproduced")


def test_every_verdict_of_the_report_is_one_the_rule_gives():
    text = (ROOT / "docs" / "RESULTS.md").read_text(encoding="utf-8")
    short = text.partition("## In short")[2].partition("\n## ")[0]
    given = {row.rpartition("| **")[2].removesuffix("** |") for row in short.splitlines() if row.endswith("** |")}
    known = {"cannot be judged", "mixed"}
    for yes, neither, no in (verdicts.CLAIM, verdicts.QUESTION):
        known |= {yes, neither, no, *(f"{word} in part" for word in (yes, no))}
        known |= {f"mixed, mostly {word}" for word in (yes, no)}
    assert len(given) > 5 and given <= known
    assert all(f"**{word}**" in text for word in ("reproduced", "refuted", "not reproduced"))


def test_a_judge_is_trained_where_gradients_are(tmp_path, monkeypatch):
    """One process alone asks for its judge in the midst of measuring, without gradients."""
    from evidence import judge

    class Trained(Exception):
        pass

    def classifier():
        (torch.ones(1, requires_grad=True) * 2).backward()
        raise Trained

    monkeypatch.setattr(judge.recognise, "classifier", classifier)
    with torch.inference_mode(), pytest.raises(Trained):
        judge.load(tmp_path)


@pytest.mark.parametrize("solver", ["euler", "dpmpp_2m"])
def test_guided_sampling_is_the_packs_own(solver):
    """The loop that stored results were made with gives what gimbal.core.solvers does, but for rounding."""
    from evidence import model, samg

    class Network:
        def velocities(self, x, sigma, labels, reader=None):
            return torch.tanh(1.7 * x) * (1.3 - sigma), torch.sin(x) + sigma

    rule = samg.PlainGuidance(3.0)
    start = model.GuidedSampler(Network(), 4, seed=0)
    ours = start.sample(6, solver, rule)

    def denoise(x, sigma):
        return x - float(sigma[0]) * rule.guide(*Network().velocities(x, float(sigma[0]), None))

    noise = torch.randn(ours.shape, generator=torch.Generator().manual_seed(0))
    theirs = run(make_plan(solver, model.recognise.schedule(6), path="flow"), denoise, noise)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_tables_go_to_their_places_and_nothing_else_changes():
    from evidence import report

    document = "# A\n\n<!-- table: b -->\n| old |\n<!-- end -->\n\nWords\n"
    once = report.updated(document, {"b": "| new |"})
    assert once == "# A\n\n<!-- table: b -->\n\n| new |\n\n<!-- end -->\n\nWords\n"
    assert report.updated(once, {"b": "| new |"}) == once
    for tables in ({}, {"b": "", "c": ""}):
        with pytest.raises(ValueError, match=r"places and the tables differ: [bc]"):
            report.updated(document, tables)
    with pytest.raises(ValueError, match="one name twice"):
        report.updated(document + document, {"b": ""})


def test_report_is_what_the_stored_numbers_give():
    from evidence import report

    text = (ROOT / "docs" / "RESULTS.md").read_text(encoding="utf-8")
    assert report.updated(text, report.tables(BENCHMARKS / "evidence" / "results")) == text


def test_the_short_table_has_a_report_too(tmp_path):
    """From the stored numbers of its rows: each of them is in its table, and no question that they cannot answer."""
    from evidence import posters, quantization, quantization_report, report, subjects

    rows = {
        f"quantized-{kind}": [row for row in quantization.rows(kind) if row.quick] for kind in subjects.SETTINGS
    } | {posters.KIND: [row for row in posters.rows(posters.KIND) if row.quick]}
    for path in (BENCHMARKS / "evidence" / "results").glob("*.json"):
        stored = json.loads(path.read_text(encoding="utf-8"))
        part = path.stem.rpartition("-")[0]
        if part in report.QUANTIZED or part == posters.KIND:
            names = [row.name for row in rows.get(part, ())]
            stored["runs"] = {name: stored["runs"][name] for name in names}
        if stored["runs"]:
            (tmp_path / path.name).write_text(json.dumps(stored), encoding="utf-8")
    text = report.plain(report.tables(tmp_path), "command")
    assert "theory must win" not in text and "Moment matching, eps" in text
    for row in [row for each in rows.values() for row in each]:
        setting = row.setting
        if setting.kind == posters.KIND:
            table_, start = text.partition("## Larger canvases\n")[2], f"{setting.size} | "
        else:
            title = quantization_report.TITLES[setting.kind, setting.solver]
            table_, start = text.partition(f"### {title}")[2].partition("##")[0], ""
        form = row.form.name if row.method != quantization.FULL else "" if start else "all but W8A8"
        assert f"\n| {start}{form} | {row.method} | " in table_, row.name


def test_a_report_wants_two_seeds(tmp_path):
    from evidence import report

    for path in (BENCHMARKS / "evidence" / "results").glob("*-seed0.json"):
        shutil.copy(path, tmp_path)
    with pytest.raises(ValueError, match="has 1 seeds of the part samg"):
        report.tables(tmp_path)


def test_posters_are_judged_cell_by_cell_with_their_own_class():
    from evidence import posters

    class Judge:
        def measures(self, latents, labels):
            return {"of": [(float(latent.mean()), int(label)) for latent, label in zip(latents, labels, strict=True)]}

    side = posters.SIDE
    latents = torch.arange(12.0).reshape(2, 1, 2, 3).repeat_interleave(side, 2).repeat_interleave(side, 3)
    found = posters.CellJudge(Judge()).measures(latents, torch.tensor([3, 7]))["of"]
    assert sorted(found) == [(value, 3 if value < 6 else 7) for value in range(12)]


def test_spread_tells_what_draws_share_from_what_each_adds():
    from evidence import posters

    common, ours, theirs = 0.3, torch.tensor([0.1, -0.1, 0.1, -0.1]), torch.tensor([0.1, 0.1, -0.1, -0.1])

    class Sampler:
        def maps(self, runs, again):
            own = (ours, theirs)[again] * runs
            return [((common + own).exp(), 2 * own)] * 3

    found = posters.between_draws(Sampler(), 2)
    assert found["scale_common"] == pytest.approx(0.09)
    assert found["scale_own"] == pytest.approx(0.04)
    assert found["shift_common"] == pytest.approx(0.0, abs=1e-9)
    assert found["shift_own"] == pytest.approx(0.16)


def test_q4_0_keeps_the_largest_and_clips_its_opposite():
    """Scale -1/8: 1 is level -8, -0.5 is 4, 0.9375 lies between 7 and 8 levels and goes to 7, -0.99 beyond the last one."""
    weight = torch.zeros(1, 64)
    weight[0, :4] = torch.tensor([1.0, -0.5, 0.9375, -0.99])
    weight[0, 32] = -16.0  # a block of its own
    expected = torch.zeros(1, 64)
    expected[0, :4] = torch.tensor([1.0, -0.5, 0.875, -0.875])
    expected[0, 32] = -16.0
    assert torch.equal(formats.q4_0(weight), expected)


SIGMAS = [4.0, 2.0, 1.0, 0.5, 0.0]


def linear(gain, offset=0.0):
    """A model whose derivative is linear in the state: eps = gain * eps_0 + offset, eps_0 = x / sqrt(1 + sigma^2)."""

    def denoise(x, sigma):
        level = float(sigma[0])
        return x - level * (gain * x / (1 + level**2) ** 0.5 + offset)

    return denoise


def test_statistics_of_white_noise_are_its_variance():
    plan = make_plan("euler", SIGMAS)
    generator = torch.Generator().manual_seed(0)

    def noisy(x, sigma):
        noise = torch.randn(x.shape, generator=generator)
        return linear(1.0)(x, sigma) - float(sigma[0]) * 0.3 * noise

    x = torch.randn(8, 2, 32, 32, generator=torch.Generator().manual_seed(1))
    found = calibrate.statistics(plan, linear(1.0), noisy, x)
    torch.testing.assert_close(found.variance(1.0, kind="unconditional"), torch.full((2,), 0.09), rtol=0.05, atol=0.0)


@pytest.mark.parametrize("solver", ["euler", "dpmpp_2m"])
def test_maps_found_in_closed_loop_give_full_precision_its_moments(solver):
    plan = make_plan(solver, SIGMAS)
    x = 4 * torch.randn(5, 2, 8, 8, generator=torch.Generator().manual_seed(0))
    maps = calibrate.state_maps(plan, plan, linear(1.0), linear(0.7, 0.2), x)
    ours = run(plan, linear(0.7, 0.2), x, after_step=lambda i, state: calibrate.mapped(state, maps[i]))
    theirs, plain = run(plan, linear(1.0), x), run(plan, linear(0.7, 0.2), x)
    for moment in (torch.mean, torch.std):
        torch.testing.assert_close(moment(ours, (0, 2, 3)), moment(theirs, (0, 2, 3)), atol=1e-4, rtol=1e-4)
    assert (plain - theirs).square().mean() > 10 * (ours - theirs).square().mean()


def blurred(x, sigma):
    """A model that is right at coarse structure and too weak at fine structure."""
    eps = (x - linear(1.0)(x, sigma)) / float(sigma[0])
    waves = torch.fft.rfft2(eps)
    fine = bands.rings(*x.shape[2:]) >= bands.COUNT // 2
    return x - float(sigma[0]) * torch.fft.irfft2(waves * torch.where(fine, 0.7, 1.0), s=x.shape[2:])


def test_bands_undo_what_one_gain_cannot():
    """An error that is a gain of each band is undone whole, on the canvas of the calibration and on another."""
    plan = make_plan("euler", SIGMAS)
    x = 4 * torch.randn(5, 2, 16, 16, generator=torch.Generator().manual_seed(0))
    found = bands.band_maps(plan, linear(1.0), blurred, x)
    one_gain = calibrate.state_maps(plan, plan, linear(1.0), blurred, x)
    for size in (16, 24):
        x = 4 * torch.randn(3, 2, size, size, generator=torch.Generator().manual_seed(size))
        theirs = run(plan, linear(1.0), x)
        ours = run(plan, blurred, x, after_step=lambda i, state: bands.mapped(state, found[i]))
        other = run(plan, blurred, x, after_step=lambda i, state: calibrate.mapped(state, one_gain[i]))
        assert (other - theirs).square().mean() > 1e-3
        assert (ours - theirs).square().mean() < 1e-5


def test_a_bands_gain_changes_its_own_frequencies_alone():
    """On a canvas whose sides differ; a gain of 1 in every band is found where nothing is to do, and changes nothing."""
    x = 2 * torch.randn(16, 3, 20, 14, generator=torch.Generator().manual_seed(0)) + 1.0
    same = bands.band_maps(make_plan("euler", [1.0, 0.0]), linear(1.0), linear(1.0), x)[0]
    torch.testing.assert_close(same.gains, torch.ones(3, bands.COUNT, dtype=torch.float64))
    torch.testing.assert_close(bands.mapped(x, same), x, atol=1e-5, rtol=1e-5)
    mean = x.mean((0, 2, 3))
    before = torch.fft.fft2(x - mean.view(-1, 1, 1))
    radius = (torch.fft.fftfreq(20)[:, None] ** 2 + torch.fft.fftfreq(14) ** 2).sqrt() / 0.5**0.5
    for band in range(bands.COUNT):
        gains = torch.ones(3, bands.COUNT)
        gains[:, band] = 0.5
        after = torch.fft.fft2(bands.mapped(x, bands.BandMap(gains, mean, torch.zeros(3))))
        inside = (radius >= band / bands.COUNT) & ((radius < (band + 1) / bands.COUNT) | (band == bands.COUNT - 1))
        torch.testing.assert_close(after, before * torch.where(inside, 0.5, 1.0), atol=1e-3, rtol=1e-4)


def test_a_posters_cells_are_glyphs_of_its_class():
    from evidence.model import letters, posters

    glyphs, labels = letters.glyphs(40, 5)
    asked = torch.tensor([3, 7])
    masks = posters.masks(glyphs, asked, 2, 3, torch.Generator().manual_seed(0))
    assert masks.shape == (2, 1, 2 * letters.SIZE, 3 * letters.SIZE)
    for label, cell in zip(asked.repeat_interleave(6), posters.cells(masks, letters.SIZE), strict=True):
        assert any(torch.equal(cell, glyph) for glyph in glyphs[labels == label])


def test_maps_on_their_own_schedule_are_as_found():
    maps = [(torch.tensor([1.0 + 0.1 * i]), torch.tensor([0.2 * i])) for i in range(4)]
    for rule in (calibrate.shared_out, calibrate.interpolated):
        for ours, theirs in zip(rule(maps, SIGMAS, SIGMAS), maps, strict=True):
            torch.testing.assert_close([part.float() for part in ours], list(theirs))


def test_maps_between_calibrated_levels():
    """Halfway in log sigma from 2 to 0.5 lies 1; a step over two calibrated ones does both, one after the other."""
    maps = [(torch.tensor([scale]), torch.tensor([1.0])) for scale in (2.0, 4.0, 1.0, 1.0)]
    sparse = [maps[0], maps[2], maps[3]]
    there = calibrate.interpolated(sparse, [4.0, 2.0, 0.5, 0.0], SIGMAS)
    assert float(there[1][0]) == pytest.approx(1.5)
    both = calibrate.shared_out(maps, SIGMAS, [4.0, 1.0, 0.0])[0]
    assert [float(part) for part in both] == pytest.approx([8.0, 5.0])  # 4 (2 x + 1) + 1
