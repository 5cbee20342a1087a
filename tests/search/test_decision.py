"""Which trial wins, and when an edit is refused."""

import re
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from simulated import simulated

from lasertri.edit.candidate import Candidate
from lasertri.measure.measurement import Measurement
from lasertri.measure.objective import Objective, ObjectiveSamples
from lasertri.measure.significance import LEVEL, combined_p_value, max_t_p_value
from lasertri.model.targets import Target
from lasertri.search.confirmation import Confirmation
from lasertri.search.cross_fit import Fit
from lasertri.search.decision import decide, decide_fit
from lasertri.search.settings import Settings
from lasertri.search.strategies import distinct
from lasertri.search.trial import Trial, TrialReadings
from lasertri.search.trials import run_trials

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


class Simulated:
    """A runner of candidates whose answers are known, each of the layer that is its number."""

    def __init__(self, samples, baseline, correct):
        self.samples, self.baseline, self.correct = samples, baseline, correct

    def run(self, candidates, part, advance, share):
        readings = TrialReadings.empty(self.samples, len(candidates))
        layers = [candidate.target.layer for candidate in candidates]
        readings.edited.scores[:, part] = self.correct[layers][:, part]
        readings.beside.scores[:, part] = readings.baseline.scores[part] = self.baseline[part]
        for which in (readings.edited, readings.beside, readings.baseline):
            which.losses[..., part] = 1.0
        return readings


def test_racing_does_not_accept_more_often_where_there_is_no_effect(monkeypatch):
    rng, runs, accepted, dropped = np.random.default_rng(8), 200, 0, 0
    samples = ObjectiveSamples(list(range(80)), objective=Objective(None, None, None))
    candidates = [trial(0, layer=i).candidate for i in range(20)]
    factors = SimpleNamespace(retain=list)
    for run in range(runs):
        runner = Simulated(samples, *simulated(rng, candidates=20, n=80))
        monkeypatch.setattr("lasertri.search.trials.plan_trials", lambda *_, runner=runner: [(runner, set(range(20)))])
        baseline, trials = run_trials(None, candidates, samples, factors, Settings(seed=run, progress=False))
        dropped += sum(not trial.finished for trial in trials)
        accepted += decide(trials, baseline, samples.groups, seed=run).accepted is not None
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


def test_a_seed_decides_the_same_again():
    trials = [trial(26), trial(25)]
    found = [decide(trials, BASELINE, GROUPS, **seed).p_value for seed in ({}, {"seed": 0}, {"seed": 0}, {"seed": 1})]
    assert found[0] == found[1] == found[2] != found[3]


@pytest.mark.parametrize(
    ("found", "accept", "reason"),
    [
        (trial(35), "test", r"the joint test over 1 candidates gives p = 0\.0\d{3}, at most 0\.05"),
        (trial(22), "test", r"the joint test over 1 candidates gives p = 0\.[1-9]\d{3}, above 0\.05"),
        (trial(35), "best", r"the best candidate beats the baseline \(no test asked for\)"),
        (trial(20), "test", "no candidate beats the baseline"),
        (trial(35, collapsed=True), "test", "every candidate lowers balanced accuracy or collapses to one answer"),
    ],
)
def test_a_decision_says_why(found, accept, reason):
    decision = decide([found], BASELINE, GROUPS, accept=accept)
    assert re.fullmatch(reason, decision.reason)
    assert {decision.accepted, decision.rejected} == {found, None}


def fit(right, loss, *, relief=0.0, **measured):
    result = measurement(right, **measured)
    gain = result.correct.astype(int) - BASELINE.correct
    return Fit(None, result, loss, 0.0, gain, np.full(N, relief))


def test_of_steps_the_lowest_loss_wins_whatever_its_accuracy():
    best = fit(35, 0.5, relief=0.5)
    assert decide_fit([fit(36, 0.9), best, fit(20, 0.6)], BASELINE, 1.0, GROUPS).accepted is best
    decision = decide_fit([fit(36, 1.0)], BASELINE, 1.0, GROUPS)
    assert decision.accepted is None
    assert decision.reason == "no candidate beats the baseline"


def test_a_step_is_accepted_for_its_gain_or_for_its_relief():
    for found in (fit(35, 0.5), fit(20, 0.5, relief=0.5)):
        assert decide_fit([found, fit(21, 0.9)], BASELINE, 1.0, GROUPS).accepted is found
        assert decide_fit([fit(21, 0.9), found], BASELINE, 1.0, GROUPS).accepted is found
    small = fit(22, 0.9)
    decision = decide_fit([small, fit(19, 0.95)], BASELINE, 1.0, GROUPS)
    assert (decision.accepted, decision.rejected) == (None, small)
    assert "over 2 candidates" in decision.reason
    assert decide_fit([small], BASELINE, 1.0, GROUPS, accept="best").accepted is small


def test_a_step_that_ruins_the_model_is_passed_over():
    baseline, sound = measurement(20, balanced=0.5), fit(35, 0.8, balanced=0.6)
    unsound = fit(38, 0.2, balanced=0.4)
    assert decide_fit([unsound, sound], baseline, 1.0, GROUPS).accepted is sound
    assert decide_fit([unsound, sound], baseline, 1.0, GROUPS, accept="best").accepted is unsound
    assert "collapses" in decide_fit([unsound], baseline, 1.0, GROUPS).reason


def test_a_seed_decides_the_same_of_steps_again():
    fits = [fit(26, 0.8), fit(25, 0.9)]
    p = [decide_fit(fits, BASELINE, 1.0, GROUPS, **s).p_value for s in ({}, {"seed": 0}, {"seed": 0}, {"seed": 1})]
    assert p[0] == p[1] == p[2] != p[3]


def test_with_no_effect_about_five_percent_of_runs_accept_a_step():
    """Sizes in a row give nearly the same, each sample is better or worse by chance, and fewer answers change."""
    rng, runs, n, accepted = np.random.default_rng(9), 400, 60, 0
    groups, baseline = [str(i) for i in range(n)], Measurement(0.5, 0.5, None, 1.0, False, n, np.arange(n) % 2 == 0)
    for run in range(runs):
        fits = []
        for common in rng.standard_normal((2, n)) * rng.gamma(1, 1, n):  # two directions, four sizes each
            for size in (0.5, 1, 2, 4):
                relief = (0.9 + 0.1 * size) * (common + 0.3 * rng.standard_normal(n))
                gain = np.sign(relief) * (np.abs(relief) > 2)
                result = replace(baseline, accuracy=0.5 + gain.mean(), correct=baseline.correct)
                fits.append(Fit(None, result, 1.0 - relief.mean(), 0.0, gain, relief))
        accepted += decide_fit(fits, baseline, 1.0, groups, seed=run).accepted is not None
    assert 9 <= accepted <= 32  # 99 % of binomial(400, .05)


def test_a_step_among_many_needs_more():
    rng = np.random.default_rng(1)
    good = fit(24, 0.9)
    others = [
        replace(fit(20, 0.95), gain=rng.choice((-1.0, 0.0, 1.0), N), relief=rng.standard_normal(N)) for _ in range(30)
    ]
    alone, among = (decide_fit([good, *more], BASELINE, 1.0, GROUPS).p_value for more in ([], others))
    assert among > alone


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


def confirmation(p, n=80):
    comparison = SimpleNamespace(baseline=SimpleNamespace(n=n))
    return Confirmation(comparison, p, n)


def test_a_winner_that_the_joint_test_refuses_is_accepted_where_fresh_samples_speak_for_it():
    found = trial(24)
    alone = decide([found], BASELINE, GROUPS)
    assert alone.accepted is None
    decision = decide([found], BASELINE, GROUPS, confirm=lambda winner: confirmation(0.01))
    assert decision.accepted is found
    assert decision.p_value == combined_p_value([alone.p_value, 0.01], [len(GROUPS), 80]) < LEVEL
    assert decision.confirmation.p_value == 0.01
    assert decision.reason.startswith("the joint test over 1 candidates (p = 0.0")
    said = "that of the best alone on 80 fresh samples, in accuracy or log loss (p = 0.0100), together give p = 0.00"
    assert said in decision.reason
    sure = decide([found], BASELINE, GROUPS, confirm=lambda winner: confirmation(1e-5))
    assert "in accuracy or log loss (p < 0.0001)" in sure.reason


def test_one_that_it_would_accept_is_refused_where_they_speak_against():
    found = trial(26)
    assert decide([found], BASELINE, GROUPS).accepted is found
    decision = decide([found], BASELINE, GROUPS, confirm=lambda winner: confirmation(0.9))
    assert (decision.accepted, decision.rejected) == (None, found)
    assert decision.reason.endswith("above 0.05")


def test_where_fresh_samples_cannot_be_read_the_joint_test_decides():
    assert decide([trial(26)], BASELINE, GROUPS, confirm=lambda winner: None) == decide([trial(26)], BASELINE, GROUPS)


@pytest.mark.parametrize(
    ("found", "accept"), [(trial(20), "test"), (trial(35, collapsed=True), "test"), (trial(35), "best")]
)
def test_fresh_samples_are_read_only_where_a_test_is_to_decide(found, accept):
    decision = decide([found], BASELINE, GROUPS, accept=accept, confirm=lambda winner: pytest.fail("read"))
    assert decision.confirmation is None


def test_with_no_effect_about_five_percent_of_winners_are_accepted():
    rng, runs, accepted = np.random.default_rng(5), 400, 0
    for run in range(runs):
        gains = rng.choice((-1, 0, 1), size=(10, len(GROUPS)), p=(0.15, 0.7, 0.15))
        trials = [
            Trial(trial(0, layer=i).candidate, trial(20 + int(g.sum())).measurement, 0.0, g)
            for i, g in enumerate(gains)
        ]

        def confirm(_, run=run):
            fresh = rng.choice((-1, 0, 1), size=(2, 80), p=(0.15, 0.7, 0.15))
            return confirmation(max_t_p_value(fresh, [0, 1], list(map(str, range(80))), seed=run, flips=500))

        accepted += decide(trials, BASELINE, GROUPS, seed=run, confirm=confirm).accepted is not None
    assert accepted <= 32  # 99 % of binomial(400, .05)
