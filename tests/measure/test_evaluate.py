"""Accuracy, balanced accuracy, log loss and collapse, on models whose answers are known."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tiny import make_samples
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from torch import nn
from transformers import PreTrainedTokenizerFast

from lasertri import LasertriError, Sample
from lasertri.language.readings import Readings
from lasertri.language.samples import EncodedSamples
from lasertri.measure.evaluate import evaluate


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


@pytest.mark.parametrize(("wrong", "collapsed"), [(1, False), (2, True)])
def test_one_string_is_no_collapse_where_it_is_the_right_answer(tokenizer, wrong, collapsed):
    answers = ["yes"] * (20 - wrong) + ["no"] * wrong
    assert measured(tokenizer, [Sample("b", answer) for answer in answers], yes=2.0).collapsed is collapsed


@pytest.mark.parametrize(("text", "collapsed"), [("a no b", False), ("yes, yes", True), ("", True)])
def test_written_text_collapses_when_it_is_one_string_but_for_the_right_one(tokenizer, text, collapsed):
    model = Fixed(tokenizer)
    samples = EncodedSamples([Sample("b", "no", match="contains", window=3)] * 20, model=model, tokenizer=tokenizer)

    def measurement(texts):
        zeros = np.zeros(20)
        return Readings(samples.table, zeros, zeros, np.array(texts, dtype=object)).measurement()

    assert measurement([text] * 20).collapsed is collapsed
    assert not measurement([f"{text} {i}" for i in range(20)]).collapsed


@pytest.mark.parametrize(("others", "collapsed"), [(0, True), (1, True), (2, False), (9, False)])
def test_choices_collapse_where_one_takes_95_percent(tokenizer, others, collapsed):
    """Every second of 20 is a "yes"; "no" is answered wrongly only, so that balanced accuracy is not earned."""
    model = Fixed(tokenizer)
    samples = EncodedSamples(yes_no(*[0, 1] * 10), model=model, tokenizer=tokenizer)
    readings = samples.readings()
    readings.log_probs[:] = np.tile([-1.0, -2.0], 20)  # "yes" before "no"
    readings.log_probs[: 4 * others : 4] = -3.0  # "no" to some where "yes" is right
    result = readings.measurement()
    assert result.balanced_accuracy <= 0.5
    assert result.collapsed is collapsed


@pytest.mark.parametrize(
    ("completion", "greedy", "tokens", "text"),
    [
        ("Paris", "Paris", True, True),
        ("Paris", "paris", False, True),
        ("Paris", "Rome", False, False),
        ("Paris paris", "paris", False, True),
        ("Paris Rome", "paris", False, False),
        ("Pariss", "Paris", False, False),
    ],
)
def test_completions_may_match_as_text(completion, greedy, tokens, text):
    words = Tokenizer(
        models.WordLevel({w: i for i, w in enumerate(["?", "a", "Paris", "paris", "Pariss", "Rome"])}, "?")
    )
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="?")
    samples = [Sample("a", completion, match=match) for match in ("tokens", "text")]
    assert measured(tokenizer, samples, **{greedy: 2.0}).correct.tolist() == [tokens, text]


def test_tokens_that_match_are_right_as_text_even_where_they_do_not_read_like_the_completion():
    """A tokenizer that lowers and drops accents gives back another text than it was given."""
    words = Tokenizer(models.WordLevel({"?": 0, "a": 1, "cafe": 2}, "?"))
    words.normalizer, words.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="?")
    assert measured(tokenizer, [Sample("a", "Café", match="text")], cafe=2.0).accuracy == 1


@pytest.mark.parametrize("normalize", [False, True])
def test_outcomes_of_many_models_are_those_of_a_loop_over_samples(tokenizer, normalize):
    odd = [Sample("a " * i, choices=("c", "d e", "f g h")[: 2 + i % 2], label=i % 2) for i in range(1, 12)]
    free = [Sample("a " * i, ("yes", "yes no")[i % 2]) for i in range(1, 12)]
    model = Fixed(tokenizer)
    samples = EncodedSamples([*make_samples(7), *odd, *free], model=model, tokenizer=tokenizer)
    rng, shape = np.random.default_rng(0), (5, len(samples.table.tokens))
    log_probs = -rng.integers(1, 5, shape).astype(float)  # with ties
    log_probs[rng.random(shape) < 0.05] = np.nan
    greedy = np.where(rng.random(shape) < 0.7, samples.table.tokens, 1)
    readings = Readings(samples.table, log_probs, greedy, np.full((5, len(samples)), "", dtype=object))
    chosen = rng.permutation(len(samples))[:20].tolist()
    correct, gold = readings.outcomes(chosen, normalize=normalize)
    for m in range(5):
        for k, i in enumerate(chosen):
            sample, sums, same = samples.samples[i], [], []
            entry = samples.table.first_token[samples.table.first_answer[i]]
            for answer in samples.answers[i]:
                mine = slice(entry, entry := entry + len(answer.tokens))
                sums.append(sum(log_probs[m, mine]))
                same.append(tuple(greedy[m, mine]) == answer.tokens)
            scores = [s / len(text) if normalize else s for s, text in zip(sums, sample.answers, strict=True)]
            right = scores.index(max(scores)) == sample.gold if sample.choices else same[0]
            assert correct[m, k] == (right and not np.isnan(sums).any())
            assert gold[m, k] == (-np.inf if np.isnan(sums[sample.gold]) else sums[sample.gold])
        one = readings[m].measurement(chosen, normalize=normalize)
        assert one.correct.tolist() == correct[m].tolist()
        assert one.log_loss == -gold[m].mean()


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
    with pytest.raises(LasertriError, match="got NaN or Inf for a sample and 1 more"):
        measured(tokenizer, yes_no(0, 1), yes=float("nan"))
    model = Fixed(tokenizer, yes=float("nan"))
    failed = evaluate(model, EncodedSamples(yes_no(0, 1), model=model, tokenizer=tokenizer), may_fail=True)
    assert (failed.accuracy, failed.to_dict()["log_loss"]) == (0, None)


def test_the_order_of_the_choices_does_not_matter(tokenizer):
    samples = [Sample("a", choices=("yes", "no"), label=0), Sample("b", choices=("no", "yes"), label=0)]
    assert measured(tokenizer, samples, yes=2.0).balanced_accuracy == 0.5
