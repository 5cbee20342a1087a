"""Which trial wins, and when an edit is refused."""

from dataclasses import replace

import numpy as np
import pytest
from test_significance import simulated

from lasertri.edit.candidate import Candidate
from lasertri.measure.measurement import Measurement
from lasertri.model.targets import Target
from lasertri.search.decision import decide
from lasertri.search.racing import beaten
from lasertri.search.strategies import distinct
from lasertri.search.trials import Trial

N = 40
GROUPS = [str(i) for i in range(N)]


def measurement(right, *, log_loss=1.0, balanced=None, collapsed=False):
    correct = np.arange(N) < right
    return Measurement(right / N, 0.5, balanced, log_loss, collapsed, N, correct)


def trial(right, *, layer=0, blocks=1, ratio=0.1, **measured):
    target = Target(f"layers.{layer}.fc", layer, "fc_in", False, (16, 8))
    result = measurement(right, **measured)
    return Trial(Candidate(target, blocks, ratio), result, 0.0, result.correct.astype(int) - BASELINE.correct)


BASELINE = measurement(20)


def test_a_large_gain_is_accepted_and_a_small_one_rejected():
    assert decide([trial(35)], BASELINE, GROUPS).accepted
    decision = decide([trial(22)], BASELINE, GROUPS)
    assert (decision.accepted, decision.rejected.measurement.accuracy) == (None, 22 / N)
    assert decision.p_value > 0.05


@pytest.mark.parametrize(
    ("better", "worse"),
    [
        (trial(36), trial(35, log_loss=0.1)),
        (trial(35, log_loss=0.5), trial(35, ratio=0.9)),
        (trial(35, ratio=0.9, blocks=8), trial(35, ratio=0.8)),
        (trial(35, blocks=2, layer=3), trial(35, blocks=4)),
        (trial(35, layer=1), trial(35, layer=2)),
    ],
)
def test_ties_go_to_log_loss_then_rho_then_blocks_then_layer(better, worse):
    for trials in ([better, worse], [worse, better]):
        assert decide(trials, BASELINE, GROUPS).accepted is better


def test_with_no_effect_about_five_percent_of_runs_accept_an_edit():
    """From raw answers to the decision, winner's choice and all."""
    rng, runs, accepted = np.random.default_rng(6), 200, 0
    for run in range(runs):
        baseline, correct = simulated(rng, candidates=20, n=80)
        measured = [Measurement(c.mean(), 0.5, None, 1.0, False, 80, c) for c in (baseline, *correct)]
        trials = [
            Trial(trial(0, layer=i).candidate, m, 0.0, m.correct.astype(int) - baseline)
            for i, m in enumerate(measured[1:])
        ]
        accepted += decide(trials, measured[0], [str(i) for i in range(80)], seed=run).accepted is not None
    assert 2 <= accepted <= 18  # 5 % of 200 is 10, two standard deviations are 6


def test_racing_does_not_accept_more_often_where_there_is_no_effect():
    rng, runs, accepted, dropped = np.random.default_rng(8), 200, 0, 0
    names = [str(i) for i in range(80)]
    for run in range(runs):
        baseline, correct = simulated(rng, candidates=20, n=80)
        alive, seen = set(range(20)), dict.fromkeys(range(20), 0)
        for stop in (8, 16, 32, 56, 80):
            seen |= dict.fromkeys(alive, stop)
            order = sorted(alive)
            so_far = correct[order, :stop]
            best = max(range(len(order)), key=lambda k: so_far[k].sum())
            leader = max(so_far[best], baseline[:stop], key=np.sum)
            lost = beaten(so_far, leader, names[:stop])
            alive = {i for k, i in enumerate(order) if k == best or not lost[k]}
        trials = []
        for i, n in seen.items():
            measured = Measurement(correct[i, :n].mean(), 0.5, None, 1.0, False, n, correct[i, :n])
            gain = np.where(np.arange(80) < n, correct[i].astype(int) - baseline, 0)
            trials.append(Trial(trial(0, layer=i).candidate, measured, 0.0, gain))
        dropped += sum(n < 80 for n in seen.values())
        whole = Measurement(baseline.mean(), 0.5, None, 1.0, False, 80, baseline)
        accepted += decide(trials, whole, names, seed=run).accepted is not None
    assert dropped
    assert accepted <= 18  # 5 % of 200 is 10, two standard deviations are 6


def test_a_collapsed_or_unbalanced_winner_is_passed_over():
    sound = trial(34, balanced=0.6)
    baseline = measurement(20, balanced=0.5)
    for unsound in (trial(38, balanced=0.4), trial(38, balanced=0.5, collapsed=True)):
        assert decide([unsound, sound], baseline, GROUPS).accepted is sound
        alone = decide([unsound], baseline, GROUPS)
        assert alone.accepted is None
        assert "collapses" in alone.reason


def test_a_candidate_dropped_from_the_race_cannot_win_but_counts_in_the_test():
    finished, lucky = trial(28), trial(0)
    first = np.arange(N) >= N - 8
    seen = Measurement(1.0, 0.5, None, 0.1, False, 8, np.ones(8, dtype=bool))
    dropped = replace(lucky, measurement=seen, gain=first.astype(int))
    alone, beside = (decide(t, BASELINE, GROUPS) for t in ([finished], [finished, *[dropped] * 3]))
    assert (beside.accepted or beside.rejected) is finished
    assert beside.p_value > alone.p_value


def test_the_papers_rule_takes_the_best_that_beats_the_baseline():
    collapsed = trial(22, balanced=0.5, collapsed=True)
    assert decide([collapsed], measurement(20, balanced=0.5), GROUPS, accept="best").accepted is collapsed
    assert decide([trial(20)], BASELINE, GROUPS, accept="best").accepted is None
    assert decide([trial(20, log_loss=0.9)], BASELINE, GROUPS, accept="best").accepted


def test_equal_edits_are_measured_once_with_the_larger_ratio_and_fewer_blocks():
    target = trial(0).candidate.target
    grid = [Candidate(target, blocks, ratio) for blocks in (1, 2) for ratio in (0.5, 0.05, 0.01, 0.0)]
    assert distinct(grid) == [grid[0], grid[1], grid[4]]  # rank 4, rank 0, and 4 of each half
