"""The winner alone on fresh samples."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tiny import make_model, make_samples, make_tokenizer

from lasertri.edit.candidate import Candidate
from lasertri.edit.truncation import Truncation
from lasertri.factors.store import FactorStore
from lasertri.language.samples import EncodedSamples
from lasertri.measure.evaluate import evaluate
from lasertri.measure.significance import max_t_p_value
from lasertri.model.targets import find_targets
from lasertri.search.confirmation import Confirmation
from lasertri.search.settings import Settings
from lasertri.search.trial import Trial
from lasertri.support.journal import NOTHING


@pytest.fixture
def given():
    """A problem, its fresh samples and a winner."""
    model, tokenizer = make_model("gptj").eval(), make_tokenizer()
    samples = EncodedSamples(make_samples(60), model=model, tokenizer=tokenizer)
    [target, *_] = find_targets(model)
    problem = SimpleNamespace(
        model=model,
        factors=FactorStore(model, [target], [1], budget=1 << 30),
        settings=Settings(progress=False),
        journal=NOTHING,
    )
    return problem, samples, Trial(Candidate(target, 1, 0.1), evaluate(model, samples), 0.0, np.zeros(60))


def test_the_samples_are_read_with_the_edit_and_without(given):
    problem, samples, winner = given
    model = problem.model
    found = Confirmation.of(problem, samples, winner)
    before = evaluate(model, samples)
    with Truncation.build(winner.candidate, model, problem.factors).applied(model):
        after = evaluate(model, samples)
    assert (found.comparison.baseline.log_loss, found.comparison.edited.log_loss) == (before.log_loss, after.log_loss)
    rows = np.stack([after.correct.astype(float) - before.correct, before.losses - after.losses])
    assert found.p_value == max_t_p_value(rows, [0, 1], samples.groups)
    assert found.independent == len(set(samples.groups))
    assert found.to_dict()["p_value"] == found.p_value


def test_a_sample_with_outputs_that_are_not_finite_costs_the_confirmation_alone(given, caplog):
    problem, samples, winner = given
    with torch.no_grad():
        problem.model.transformer.wte.weight[samples.answers[0][0].row[0]] = 3e38
    assert Confirmation.of(problem, samples, winner) is None
    assert "no confirmation on fresh samples: expected finite outputs of the model, got NaN or Inf for" in caplog.text
