"""A race stops what is beaten beyond doubt, finds what the full grid finds, and spreads the answers over its stages."""

import numpy as np
import pytest
from tiny import make_samples

from lasertri.demo import MODEL_DIR
from lasertri.demo.recall import samples as recall_samples
from lasertri.edit.candidate import Candidate
from lasertri.factors.store import FactorStore
from lasertri.language.samples import EncodedSamples
from lasertri.model.loading import load_model, load_tokenizer
from lasertri.model.preserve import preserved
from lasertri.model.targets import find_targets
from lasertri.search.racing import beaten, stages
from lasertri.search.strategies import distinct
from lasertri.search.trials import measure


def test_stages_hold_every_sample_once_and_each_answer_in_proportion():
    samples = make_samples(100)
    answers = [sample.answers[sample.gold] for sample in samples]
    parts = stages(answers, seed=3)
    assert [len(part) for part in parts] == [10, 10, 20, 30, 30]
    assert sorted(i for part in parts for i in part) == list(range(100))
    share, seen = np.mean([sample.gold for sample in samples]), []
    for part in parts:
        seen += part
        assert abs(sum(samples[i].gold for i in seen) - share * len(seen)) <= 1
    assert stages(answers, seed=3) == parts != stages(answers, seed=4)


@pytest.mark.parametrize("count", [1, 3, 7, 20])
def test_few_samples_still_make_whole_stages(count):
    parts = stages([sample.answers[sample.gold] for sample in make_samples(count)])
    assert sorted(i for part in parts for i in part) == list(range(count))
    assert all(parts)


@pytest.mark.parametrize(
    ("won", "lost", "dropped"),
    [(0, 6, False), (0, 7, True), (1, 9, False), (1, 10, True), (0, 0, False), (9, 1, False)],
)
def test_the_sign_test_is_exact(won, lost, dropped):
    """2**-6 > 0.01 >= 2**-7; 11 / 2**10 > 0.01 >= 12 / 2**11."""
    leader = np.array([False] * won + [True] * lost + [True] * 5)
    correct = np.array([[True] * won + [False] * lost + [True] * 5])
    assert beaten(correct, leader, [str(i) for i in range(len(leader))]) == [dropped]


def test_samples_of_one_group_are_one_sign():
    leader, correct = np.ones(20, dtype=bool), np.zeros((1, 20), dtype=bool)
    assert beaten(correct, leader, [str(i) for i in range(20)])
    assert not beaten(correct, leader, [str(i // 5) for i in range(20)])


def test_real_scores_are_told_by_their_gain_not_by_how_often_they_win():
    """Nine samples of ten lose a little, one wins much: no reason to stop; a small loss everywhere is one."""
    names = [str(i) for i in range(40)]
    leader = np.linspace(0.2, 0.6, 40)
    rare = leader + np.where(np.arange(40) % 10 == 0, 0.2, -0.03)
    assert beaten(np.stack([rare, leader - 0.01, leader]), leader, names).tolist() == [False, True, False]
    assert not beaten(np.stack([leader - 0.01]), leader, [str(i // 5) for i in range(40)]).any()


def test_real_scores_without_a_difference_are_hardly_ever_dropped():
    rng = np.random.default_rng(0)
    leader, names = rng.uniform(0.3, 0.7, 30), [str(i) for i in range(30)]
    dropped = beaten(leader + rng.normal(size=(4000, 30)) * rng.uniform(0, 0.1, 30), leader, names)
    assert 0 < dropped.sum() <= 0.01 * 4000


@pytest.fixture(scope="module")
def demo():
    """The packaged model, its task, and a grid in which most candidates lose."""
    model, tokenizer = load_model(MODEL_DIR, device="cpu"), load_tokenizer(MODEL_DIR)
    samples = EncodedSamples(recall_samples(80, seed=5), model=model, tokenizer=tokenizer)
    targets = find_targets(model)
    grid = [Candidate(t, k, ratio) for t in targets for k in (1, 4) for ratio in (0.8, 0.4, 0.1, 0.0)]
    return model, distinct(grid), samples, targets


def raced(demo, **options):
    model, candidates, samples, targets = demo
    with preserved(model):
        return measure(model, candidates, samples, FactorStore(model, targets, [1, 4], budget=1 << 30), **options)


def test_a_race_measures_less_and_finds_the_same(demo):
    baseline, full = raced(demo, race=False)
    same, race = raced(demo, race=True)
    assert all(trial.finished for trial in full)
    assert baseline.accuracy == same.accuracy
    by_accuracy = {trial.candidate: trial.measurement.accuracy for trial in full}
    finished = [trial for trial in race if trial.finished]
    assert max(by_accuracy.values()) == max(by_accuracy[trial.candidate] for trial in finished)
    assert sum(trial.measurement.n for trial in race) < 0.7 * sum(trial.measurement.n for trial in full)
    for trial in finished:
        assert trial.measurement.accuracy == pytest.approx(by_accuracy[trial.candidate], abs=1 / 80)


def test_gains_are_against_the_baseline_in_the_same_batch_and_zero_where_nothing_was_seen(demo):
    baseline, trials = raced(demo, race=True)
    for trial in trials:
        assert np.abs(trial.gain).sum() <= trial.measurement.n
        if trial.finished:
            assert trial.gain.sum() / 80 == pytest.approx(trial.measurement.accuracy - baseline.accuracy, abs=1e-9)
    assert any(not trial.finished for trial in trials)
