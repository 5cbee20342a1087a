"""Accuracy, balanced accuracy, log loss and collapse, on models whose answers are known."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from lasertri import LasertriError, Sample
from lasertri.encode import EncodedSamples
from lasertri.evaluate import evaluate


class Fixed(nn.Module):
    """Gives the same next-token logits everywhere."""

    def __init__(self, tokenizer, **logits):
        super().__init__()
        self.config = SimpleNamespace(get_text_config=lambda: SimpleNamespace(max_position_embeddings=64))
        self.device = torch.device("cpu")
        self.logits = torch.full((len(tokenizer),), -5.0)
        for word, value in logits.items():
            self.logits[tokenizer.convert_tokens_to_ids(word)] = value

    def forward(self, input_ids, **_):
        return SimpleNamespace(logits=self.logits.expand(*input_ids.shape, -1))


def measured(tokenizer, samples, *, normalize=False, **logits):
    model = Fixed(tokenizer, **logits)
    return evaluate(model, EncodedSamples(samples, model=model, tokenizer=tokenizer), normalize=normalize)


def yes_no(*labels):
    return [Sample(f"a b {'c ' * i}", choices=("yes", "no"), label=label) for i, label in enumerate(labels)]


def test_a_constant_answer_is_collapsed_whatever_its_accuracy(tokenizer):
    result = measured(tokenizer, yes_no(0, 0, 0, 1), yes=2.0)
    assert (result.accuracy, result.majority_rate, result.balanced_accuracy) == (0.75, 0.75, 0.5)
    assert result.collapsed
    assert result.correct.tolist() == [True, True, True, False]


def test_log_loss_is_summed_over_tokens_and_averaged_over_samples(tokenizer):
    logits = {"yes": 2.0, "a": 1.0}
    expected = -torch.log_softmax(Fixed(tokenizer, **logits).logits, -1)
    yes, a = expected[tokenizer.convert_tokens_to_ids("yes")], expected[tokenizer.convert_tokens_to_ids("a")]
    result = measured(tokenizer, [Sample("b", "yes a"), Sample("c", "yes")], **logits)
    assert result.log_loss == pytest.approx(((yes + a + yes) / 2).item())


def test_completions_are_greedy_matches_of_every_token(tokenizer):
    result = measured(tokenizer, [Sample("b", "yes"), Sample("c", "yes yes"), Sample("d", "yes a")], yes=2.0)
    assert result.correct.tolist() == [True, True, False]
    assert result.balanced_accuracy is None


def test_free_text_collapses_when_one_string_is_given(tokenizer):
    assert measured(tokenizer, [Sample("b", "yes"), Sample("c", "no")], yes=2.0).collapsed
    assert not measured(tokenizer, [Sample("b", "yes"), Sample("c", "no no")], yes=2.0).collapsed


def test_choices_that_differ_between_samples_have_no_balanced_accuracy(tokenizer):
    samples = [Sample("a", choices=("yes", "no"), label=0), Sample("b", choices=("c", "d"), label=1)]
    result = measured(tokenizer, samples, yes=2.0, d=2.0)
    assert (result.accuracy, result.balanced_accuracy, result.collapsed) == (1.0, None, False)


def test_length_normalisation_is_by_characters(tokenizer):
    samples = [Sample("a", choices=("b", "yes yes"), label=1)]
    logits = {"b": 1.0, "yes": 0.5}  # one token beats two, but not per character
    assert measured(tokenizer, samples, **logits).accuracy == 0
    assert measured(tokenizer, samples, normalize=True, **logits).accuracy == 1


def test_nan_probabilities_are_an_error_unless_a_trial_may_fail(tokenizer):
    with pytest.raises(LasertriError, match="log-probabilities, came NaN"):
        measured(tokenizer, yes_no(0, 1), yes=float("nan"))
    model = Fixed(tokenizer, yes=float("nan"))
    failed = evaluate(model, EncodedSamples(yes_no(0, 1), model=model, tokenizer=tokenizer), may_fail=True)
    assert (failed.accuracy, failed.to_dict()["log_loss"]) == (0, None)


def test_the_order_of_the_choices_does_not_matter(tokenizer):
    samples = [Sample("a", choices=("yes", "no"), label=0), Sample("b", choices=("no", "yes"), label=0)]
    assert measured(tokenizer, samples, yes=2.0).balanced_accuracy == 0.5
