"""A race stops what is beaten beyond doubt, finds what the full grid finds, and spreads the answers over its stages."""

import numpy as np
import pytest
from tiny import make_samples

from lasertri import Sample
from lasertri.demo import MODEL_DIR
from lasertri.demo.recall import samples as recall_samples
from lasertri.edit.candidate import Candidate
from lasertri.factors.store import FactorStore
from lasertri.language.samples import EncodedSamples
from lasertri.model.loading import load_model, load_tokenizer
from lasertri.model.preserve import preserved
from lasertri.model.targets import find_targets
from lasertri.search.racing import beaten, stages, survivors
from lasertri.search.settings import Settings
from lasertri.search.strategies import distinct
from lasertri.search.trial import TrialReadings
from lasertri.search.trials import run_trials


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


def test_a_rare_answer_is_among_the_first_samples_too():
    parts = stages(["often"] * 90 + ["seldom"] * 10)
    assert [sum(i >= 90 for i in part) for part in parts] == pytest.approx([1, 1, 2, 3, 3], abs=1)
    assert parts == stages(["often"] * 90 + ["seldom"] * 10, seed=0)


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


def test_a_score_on_one_side_alone_is_told_by_its_gain_too():
    """Four samples gain much where 36 lose a little: by signs alone that would be a loss beyond doubt."""
    names, rare = [str(i) for i in range(40)], np.arange(40) % 10 == 0
    whole, real = np.where(rare, 0.0, 1.0), np.where(rare, 0.9, 0.97)
    assert not beaten(real[None], whole, names)
    assert not beaten(1 - whole[None], 1 - real, names)


def test_real_scores_without_a_difference_are_hardly_ever_dropped():
    rng = np.random.default_rng(0)
    leader, names = rng.uniform(0.3, 0.7, 30), [str(i) for i in range(30)]
    dropped = beaten(leader + rng.normal(size=(4000, 30)) * rng.uniform(0, 0.1, 30), leader, names)
    assert 0 < dropped.sum() <= 0.01 * 4000


def log_probs(taken, *, normalize=False):
    """Of "yes" and "no", so that this is taken; to normalize, it is so by the letter, and "no" is taken otherwise."""
    for_yes, for_no = ((-2.4, -1.8), (-2.4, -1.0)) if normalize else ((-1.0, -2.0), (-2.0, -1.0))
    return np.where((taken == 0)[:, None], for_yes, for_no).reshape(-1)


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize(("accept", "kept"), [("test", True), ("best", False)])
def test_only_a_candidate_that_could_be_accepted_leads(model, tokenizer, accept, kept, normalize):
    """Four of five answers are "yes": saying nothing else is right more often than telling some of them apart."""
    answers = [Sample("a b", choices=("yes", "no"), label=int(i % 5 == 0), group=str(i)) for i in range(70)]
    samples = EncodedSamples(answers, model=model, tokenizer=tokenizer)
    always_yes = np.zeros(70, dtype=int)
    balanced = np.array([int(i % 10 not in (1, 2, 3)) for i in range(70)])  # right on every "no", on some of "yes"
    wrong = np.array([1 - sample.gold for sample in answers])
    readings = TrialReadings.empty(samples, 2)
    readings.edited.log_probs[:] = [log_probs(taken, normalize=normalize) for taken in (always_yes, balanced)]
    readings.baseline.log_probs[:] = log_probs(wrong, normalize=normalize)
    settings = Settings(accept=accept, normalize=normalize, progress=False)
    assert survivors([0, 1], readings, range(70), samples.groups, settings) == ([0, 1] if kept else [0])
    assert survivors([0], readings, range(70), samples.groups, settings) == [0], "the best, though it could not win"
    readings.baseline.log_probs[:] = log_probs(1 - wrong, normalize=normalize)
    assert survivors([0, 1], readings, range(70), samples.groups, settings) == [0], "neither is sound beside this one"


@pytest.mark.parametrize("normalize", [False, True])
def test_the_baseline_leads_where_it_is_better_on_what_was_seen(model, tokenizer, normalize):
    """It is right on the first 40 samples alone; two candidates are right on some, one on few more than the other."""
    answers = [Sample("a b", choices=("yes", "no"), label=i % 2, group=str(i)) for i in range(70)]
    samples, number = EncodedSamples(answers, model=model, tokenizer=tokenizer), np.arange(70)
    readings = TrialReadings.empty(samples, 2)
    for which, right in (
        (readings.baseline, number < 40),
        (readings.edited[0], number % 5 < 3),
        (readings.edited[1], number % 9 < 5),
    ):
        which.log_probs[:] = log_probs(np.where(right, number % 2, 1 - number % 2), normalize=normalize)
    settings = Settings(accept="best", normalize=normalize, progress=False)
    for seen, kept in ((range(40), [0]), (range(30, 70), [0, 1])):
        assert survivors([0, 1], readings, seen, samples.groups, settings) == kept


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
        factors = FactorStore(model, targets, [1, 4], budget=1 << 30)
        return run_trials(model, candidates, samples, factors, Settings(progress=False, **options))


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
