"""The joint test keeps its level when nothing has an effect, and sees one when there is."""

import itertools

import numpy as np
import pytest
from marks import slow
from simulated import simulated

from lasertri.measure.significance import LEVEL, combined_p_value, max_t_p_value, paired_interval, relief, verdict


def p_value(baseline, correct, seed=0):
    differences = correct.astype(int) - baseline
    return max_t_p_value(differences, int(differences.sum(1).argmax()), list(map(str, range(len(baseline)))), seed=seed)


def test_with_no_effect_an_edit_is_accepted_in_about_five_percent_of_runs():
    rng, runs = np.random.default_rng(0), 400
    accepted = sum(p_value(*simulated(rng), seed=run) <= LEVEL for run in range(runs))
    # 5 % of 400 is 20, two standard deviations are 9; the best single difference would "win" in nearly every run
    assert 6 <= accepted <= 30


def test_a_real_effect_is_accepted():
    rng = np.random.default_rng(1)
    assert all(p_value(*simulated(rng, effect=0.5)) <= LEVEL for _ in range(5))


def ruined(rng, *, candidates, n, baseline):
    """What truncating to nothing does: answers unrelated to the baseline's."""
    return rng.random((candidates, n)) < baseline.mean()


def test_ruined_candidates_do_not_drown_an_effect():
    """Half of a default grid ruins the model; a gain of 15 points must still be seen (by raw sums: 3 times of 30)."""
    rng, accepted = np.random.default_rng(4), 0
    for run in range(30):
        baseline, correct = simulated(rng, candidates=60, effect=0.3)
        correct = np.concatenate([correct, ruined(rng, candidates=100, n=100, baseline=baseline)])
        differences = correct.astype(int) - baseline
        accepted += max_t_p_value(differences, 0, list(map(str, range(100))), seed=run, flips=2000) <= LEVEL
    assert accepted >= 12


def test_with_candidates_of_every_kind_and_no_effect_the_level_holds():
    rng, runs = np.random.default_rng(5), 200
    accepted = 0
    for run in range(runs):
        baseline, correct = simulated(rng, candidates=30)
        correct = np.concatenate([correct, ruined(rng, candidates=30, n=100, baseline=baseline)])
        differences = correct.astype(int) - baseline
        winner = int(differences.sum(1).argmax())
        accepted += max_t_p_value(differences, winner, list(map(str, range(100))), seed=run, flips=1000) <= LEVEL
    assert accepted <= 20


def test_more_candidates_make_the_same_winner_less_surprising():
    rng = np.random.default_rng(2)
    baseline, correct = simulated(rng, candidates=200, effect=0.2)
    assert p_value(baseline, correct[:1]) < p_value(baseline, correct)


def test_the_signs_as_they_are_count_as_one_more_flip():
    """So that no p-value is 0: that all of 40 samples are won is what no other flip of 99 gives."""
    assert max_t_p_value(np.ones((1, 40)), 0, [str(i) for i in range(40)], flips=99) == 1 / 100


def test_that_nothing_differs_is_no_surprise():
    assert max_t_p_value(np.zeros((3, 40)), 1, [str(i) for i in range(40)], flips=2500) == 1


def test_the_p_value_is_the_share_of_all_flips_in_which_any_candidate_does_as_well():
    """One of the candidates differs nowhere, one in thousandths; the groups have one to three samples."""
    rng = np.random.default_rng(6)
    gains = rng.normal(0.3, 1, size=(4, 20)) * [[1], [0.3], [0.001], [0]]
    groups = [i * i // 36 for i in range(20)]
    sums = np.stack([gains[:, [g == group for g in groups]].sum(1) for group in sorted(set(groups))], axis=1)
    t = sums / np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), 1e-300)
    flips = np.array(list(itertools.product((-1, 1), repeat=t.shape[1])))
    largest = (flips @ t.T).max(axis=1)
    for winner in range(3):
        expected = (largest >= t[winner].sum() - 1e-9).mean()
        assert max_t_p_value(gains, winner, list(map(str, groups))) == pytest.approx(expected, abs=0.02)


def test_a_seed_gives_the_same_flips_again():
    rng = np.random.default_rng(9)
    gains, groups = rng.normal(size=(3, 30)), [str(i) for i in range(30)]
    found = [max_t_p_value(gains, 0, groups, **seed) for seed in ({}, {"seed": 0}, {"seed": 0}, {"seed": 1})]
    assert found[0] == found[1] == found[2] != found[3]


def test_samples_of_one_group_flip_together():
    differences = np.ones((1, 12), dtype=int)
    alone = max_t_p_value(differences, 0, [str(i) for i in range(12)])
    grouped = max_t_p_value(differences, 0, [str(i // 4) for i in range(12)])
    assert alone < 0.002 < grouped == pytest.approx(1 / 8, abs=0.02)


def test_bonett_price_interval_of_a_worked_example():
    """20 samples, 8 won and 2 lost: p̃ = 9/22 and 3/22, by the formula of the 2012 paper."""
    baseline = np.array([False] * 8 + [True] * 2 + [True] * 10)
    edited = np.array([True] * 8 + [False] * 2 + [True] * 10)
    low, high = paired_interval(baseline, edited, [str(i) for i in range(20)])
    half = 1.959964 * np.sqrt((12 / 22 - (6 / 22) ** 2) / 22)
    assert (low, high) == pytest.approx((6 / 22 - half, 6 / 22 + half), abs=1e-6)


def test_an_interval_ends_where_accuracies_do():
    names, right = ["a", "b", "c"], np.ones(3, dtype=bool)
    assert paired_interval(~right, right, names)[1] == 1.0
    assert paired_interval(right, ~right, names)[0] == -1.0
    assert -1.0 < paired_interval(~right, right, names)[0] < 0 < paired_interval(right, ~right, names)[1] < 1.0


def test_another_level_is_another_share_of_the_normal_distribution():
    baseline, edited = np.arange(100) % 4 == 0, np.arange(100) % 3 == 0
    widths = [np.diff(paired_interval(baseline, edited, [str(i) for i in range(100)], level=x)) for x in (0.05, 0.5)]
    assert widths[0] / widths[1] == pytest.approx(1.959964 / 0.674490, rel=1e-5)


@pytest.mark.parametrize("largest", [1, 9])
@pytest.mark.parametrize(("level", "quantile"), [(0.05, 1.959964), (0.5, 0.674490)])
def test_a_bootstrap_of_many_groups_is_near_the_normal_interval(largest, level, quantile):
    """Groups of one to `largest` samples: the standard error is that of a ratio of sums."""
    rng, count = np.random.default_rng(10), 200
    sizes = rng.integers(1, largest + 1, size=count)
    group = np.repeat(np.arange(count), sizes)
    gains = rng.normal(0.1, 0.1, len(group)) + rng.normal(0, 0.3, count)[group]
    mean = gains.mean()
    error = np.linalg.norm(np.bincount(group, weights=gains) - mean * sizes) / sizes.sum()
    found = paired_interval(0 * gains, gains, list(map(str, group)), level=level)
    assert found == pytest.approx((mean - quantile * error, mean + quantile * error), abs=0.1 * error)


def test_a_seed_gives_the_same_bootstrap_again():
    rng = np.random.default_rng(11)
    baseline, edited, names = rng.random(40), rng.random(40), [str(i) for i in range(40)]
    found = [paired_interval(baseline, edited, names, **seed) for seed in ({}, {"seed": 0}, {"seed": 0}, {"seed": 1})]
    assert found[0] == found[1] == found[2] != found[3]


@pytest.mark.parametrize("group_size", [1, slow(5)])
def test_intervals_cover_the_true_difference(group_size):
    """Truth +10 points, samples of a group won or lost together: near 95 of 100 intervals must hold it."""
    rng, held, n, runs = np.random.default_rng(3), 0, 300, 60
    for run in range(runs):
        won = np.repeat(rng.random(n // group_size) < 0.2, group_size)
        lost = np.repeat(rng.random(n // group_size) < 0.125, group_size) & ~won
        low, high = paired_interval(lost, won, [str(i // group_size) for i in range(n)], seed=run)
        held += low <= 0.2 - 0.8 * 0.125 <= high
    assert held >= 0.87 * runs


@pytest.mark.slow
@pytest.mark.parametrize("group_size", [1, 5])
def test_intervals_of_real_scores_cover_the_true_difference(group_size):
    """Truth 0.06: a tenth of the samples gains 0.6, the others nothing but noise."""
    rng, held, n, runs = np.random.default_rng(4), 0, 300, 60
    for run in range(runs):
        jump = np.repeat(rng.random(n // group_size) < 0.1, group_size)
        baseline = rng.uniform(0.1, 0.3, n)
        edited = baseline + np.where(jump, 0.6, 0) + rng.uniform(-0.1, 0.1, n)
        low, high = paired_interval(baseline, edited, [str(i // group_size) for i in range(n)], seed=run)
        held += low <= 0.06 <= high
    assert held >= 0.87 * runs


def test_right_and_wrong_have_one_interval_whatever_their_dtype():
    baseline, edited = np.random.default_rng(0).random((2, 50)) < [[0.4], [0.6]]
    names = [str(i) for i in range(50)]
    assert paired_interval(baseline, edited, names) == paired_interval(baseline.astype(float), edited * 1.0, names)


def test_real_gains_keep_the_joint_tests_level():
    """Gains of very different sizes, with no effect."""
    rng, accepted, runs = np.random.default_rng(7), 0, 200
    for run in range(runs):
        gains = rng.normal(size=(20, 60)) * rng.exponential(size=60) / 20
        winner = int(gains.sum(1).argmax())
        accepted += max_t_p_value(gains, winner, [str(i) for i in range(60)], seed=run, flips=500) <= LEVEL
    assert accepted <= 20


def test_few_groups_know_nothing():
    real = np.linspace(0.1, 0.9, 30)
    assert paired_interval(real[:29], real[:29] / 2, [str(i) for i in range(29)]) == (-1.0, 1.0)
    assert paired_interval(real, real / 2, [str(i) for i in range(30)])[0] > -1.0

    won = np.ones(40, dtype=bool)
    assert paired_interval(~won, won, [str(i // 4) for i in range(40)]) == (-1.0, 1.0)


def test_verdicts():
    assert [verdict(i) for i in ((0.01, 0.2), (-0.2, -0.01), (-0.1, 0.1))] == ["helps", "hurts", "inconclusive"]


def test_p_values_combine_by_the_inverse_normal_method():
    assert combined_p_value([0.05, 0.05], [100, 100]) == pytest.approx(0.0100, abs=1e-4)  # 1 - Φ(1.645 √2)
    assert combined_p_value([0.05, 0.5], [100, 0]) == pytest.approx(0.05)
    assert combined_p_value([0.5, 0.01], [100, 300]) == pytest.approx(0.0220, abs=1e-4)  # 1 - Φ(2.326 √¾)
    assert combined_p_value([1.0, 0.04], [50, 50]) > 0.9


def test_combined_p_values_keep_their_level():
    drawn = np.random.default_rng(3).random((4000, 2))
    accepted = np.mean([combined_p_value(pair, [100, 200]) <= LEVEL for pair in drawn])
    assert accepted == pytest.approx(0.05, abs=0.01)


def test_relief_is_finite_where_a_loss_is_not():
    before, after = np.array([1.0, 3.0, np.inf, 2.0, np.inf]), np.array([0.5, np.inf, 2.0, np.nan, np.inf])
    assert relief(before, after).tolist() == [0.5, -200.0, 200.0, 0.0, 0.0]  # 100 mean losses of 2
    assert relief(np.array([np.inf]), np.array([1.0])).tolist() == [1.0]
