"""Which targets and which of their candidates are tried."""

from types import SimpleNamespace

import pytest
import torch
from tiny import make_samples

from lasertri import adapt
from lasertri.edit.candidate import Candidate
from lasertri.model.targets import Target
from lasertri.search.ranking import factorable, promising
from lasertri.search.strategies import DEFAULT, STRATEGIES
from lasertri.support.journal import Journal

ONE, OTHER = (Target(f"h.{i}.fc.weight", i, "fc_in", False, (8, 8)) for i in range(2))


def test_candidates_that_promise_most_are_tried_each_by_its_own_forecast(monkeypatch, tmp_path):
    candidates = [Candidate(t, k, ratio) for t in (ONE, OTHER) for k in (1, 4) for ratio in (0.9, 0.5)]
    promise = [-0.1, -7.0, 0.2, 0.3, 0.1, -3.0, 0.1, 0.0]
    told = []

    def foretold(problem, asked, name):
        told.append(asked)
        return torch.tensor(promise, dtype=torch.float64)

    monkeypatch.setattr("lasertri.search.ranking.foretold", foretold)
    settings = SimpleNamespace(plan=SimpleNamespace(most=3), race=True, score="fisher")
    for _ in range(2):
        with Journal.open(tmp_path, "search") as journal:
            chosen = promising(SimpleNamespace(journal=journal, settings=settings), candidates)
        assert chosen == [Candidate(ONE, 4, 0.9), Candidate(ONE, 4, 0.5), Candidate(OTHER, 1, 0.9)]
    assert told == [candidates]  # once
    settings.plan.most = len(candidates)
    assert promising(SimpleNamespace(settings=settings), candidates) == candidates


def test_which_can_be_factored_is_found_once_and_lasers_own_are_not_looked_at(tmp_path):
    asked, prepared = [], []

    def usable(keys):
        asked.extend(keys)
        return [(ONE, 1, None)]

    first, _, third = candidates = [
        Candidate(ONE, 1, 0.5),
        Candidate(OTHER, 1, 0.5),
        Candidate(OTHER, 1, 0.5, compat=True),
    ]
    with Journal.open(tmp_path, "search") as journal:
        factors = SimpleNamespace(usable=usable, prepare=lambda *batch: prepared.append(batch))
        problem = SimpleNamespace(factors=factors, journal=journal)
        assert factorable(problem, candidates) == [first, third]
    with Journal.open(tmp_path, "search") as journal:
        assert factorable(SimpleNamespace(journal=journal), candidates) == [first, third]
    assert asked == [(ONE, 1, None), (OTHER, 1, None)]
    assert [(list(targets), blocks) for targets, blocks in prepared] == [([ONE, OTHER], 1)]  # together


def result(model, tokenizer, **options):
    return adapt(
        model, make_samples(120), edit="truncate", tokenizer=tokenizer, accept="best", progress=False, **options
    ).rounds[0]


@pytest.mark.parametrize("options", [{"race": False}, {"score": "taylor"}, {"strategy": "clustering-laser"}])
def test_the_whole_grid_is_tried_without_a_race_or_a_forecast_or_by_the_papers_strategies(model, tokenizer, options):
    assert len(result(model, tokenizer, **options).trials) > STRATEGIES[DEFAULT].most


def test_the_default_tries_what_promises_most(model, tokenizer):
    found = result(model, tokenizer)
    counts = found.to_dict()["candidates"]
    assert counts["measured"] == STRATEGIES[DEFAULT].most < counts["distinct"] < counts["requested"]
