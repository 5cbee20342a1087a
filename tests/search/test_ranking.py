"""Which targets and which of their candidates are tried."""

from types import SimpleNamespace

import pytest
from tiny import make_samples

from lasertri import adapt
from lasertri.edit.candidate import Candidate
from lasertri.model.targets import Target
from lasertri.search.ranking import factorable, promising
from lasertri.search.strategies import DEFAULT, STRATEGIES
from lasertri.support.journal import Journal

ONE, OTHER = (Target(f"h.{i}.fc.weight", i, "fc_in", False, (8, 8)) for i in range(2))


def test_the_best_targets_and_ratios_are_tried_at_every_k():
    candidates = [Candidate(t, k, ratio) for t in (ONE, OTHER) for k in (1, 4) for ratio in (0.9, 0.5)]
    promise = {(ONE, 0.9): -0.1, (ONE, 0.5): 0.3, (OTHER, 0.9): 0.2, (OTHER, 0.5): -7.0}
    assert [(c.target, c.blocks, c.ratio) for c in promising(candidates, promise, 2)] == [
        *((ONE, k, 0.5) for k in (1, 4)),
        *((OTHER, k, 0.9) for k in (1, 4)),
    ]
    assert promising(candidates, promise, 4) == candidates


def test_which_can_be_factored_is_found_once_and_lasers_own_are_not_looked_at(tmp_path):
    asked = []

    def usable(keys):
        asked.extend(keys)
        return [(ONE, 1, None)]

    first, _, third = candidates = [
        Candidate(ONE, 1, 0.5),
        Candidate(OTHER, 1, 0.5),
        Candidate(OTHER, 1, 0.5, compat=True),
    ]
    with Journal.open(tmp_path, "search") as journal:
        problem = SimpleNamespace(factors=SimpleNamespace(usable=usable), journal=journal)
        assert factorable(problem, candidates) == [first, third]
    with Journal.open(tmp_path, "search") as journal:
        assert factorable(SimpleNamespace(journal=journal), candidates) == [first, third]
    assert asked == [(ONE, 1, None), (OTHER, 1, None)]


def result(model, tokenizer, **options):
    return adapt(
        model, make_samples(120), edit="truncate", tokenizer=tokenizer, accept="best", progress=False, **options
    ).rounds[0]


@pytest.mark.parametrize("options", [{"race": False}, {"score": "taylor"}, {"strategy": "clustering-laser"}])
def test_the_whole_grid_is_tried_without_a_race_or_a_forecast_or_by_the_papers_strategies(model, tokenizer, options):
    found = result(model, tokenizer, **options)
    pairs = {(trial.candidate.target, trial.candidate.ratio) for trial in found.trials}
    assert len(pairs) > STRATEGIES[DEFAULT].pairs


def test_the_default_tries_what_promises_most(model, tokenizer):
    found = result(model, tokenizer)
    tried = {trial.candidate for trial in found.trials}
    assert len({(candidate.target, candidate.ratio) for candidate in tried}) <= STRATEGIES[DEFAULT].pairs
    assert found.requested > len(tried)
