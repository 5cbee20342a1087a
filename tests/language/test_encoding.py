"""Loss and measure read the same answer tokens, at the positions that predict them."""

import numpy as np
import pytest
import torch
from marks import slow_but
from tiny import CAUSAL, make_model, make_samples
from tokenizers import Tokenizer, models, processors
from transformers import PreTrainedTokenizerFast

from lasertri import LasertriError, Sample
from lasertri.language.samples import EncodedSamples


def encode(samples, model, tokenizer, **options):
    return EncodedSamples(samples, model=model, tokenizer=tokenizer, **options)


def plain_log_prob(model, tokenizer, text, answer):
    """One row, no padding, no sharing: the answer's summed log-probability after the text."""
    context, whole = tokenizer(text)["input_ids"], tokenizer(f"{text} {answer}")["input_ids"]
    log_probs = model(torch.tensor([whole])).logits[0].log_softmax(-1)
    return sum(log_probs[i - 1, whole[i]].item() for i in range(len(context), len(whole)))


@pytest.mark.parametrize(
    "architecture", slow_but("gptj", "gpt2", "llama", "gemma2", "bloom", "mixtral", of=sorted(CAUSAL))
)
@pytest.mark.parametrize("limit", [{}, {"tokens": 1}, {"tokens": 20}])
def test_batches_read_what_a_row_alone_gives(model_of, tokenizer, architecture, limit):
    model = model_of(architecture)
    samples = [*make_samples(9), Sample("a b c", choices=("d e f", "g", "h i"), label=2)]
    encoded = encode(samples, model, tokenizer, batch_size=4)
    read = torch.zeros(len(encoded.table.tokens))
    with torch.no_grad():
        for batch in encoded.batches(**limit):
            read[batch.entry] += batch.read(model)[0]
        expected = [plain_log_prob(model, tokenizer, s.prompt, a) for s in samples for a in s.answers]
    answers = np.add.reduceat(read.numpy(), encoded.table.first_token)
    np.testing.assert_allclose(answers, expected, rtol=1e-4, atol=1e-4)


CHOICES = ("d e f", "g", "h i", "d e", "h j k l")


@pytest.mark.parametrize(
    "architecture", slow_but("gptj", "gpt2", "llama", "gemma2", "bloom", "mixtral", of=sorted(CAUSAL))
)
@pytest.mark.parametrize("options", [{}, {"sliding_window": 4}, {"attn_implementation": "eager"}], ids=str)
def test_longer_choices_branch_off_one_prompt_and_read_what_rows_of_their_own_give(tokenizer, architecture, options):
    model = make_model(architecture, **options)
    samples = [Sample("a b c", choices=CHOICES, label=2), Sample("b c", choices=CHOICES[:3], label=0), *make_samples(5)]
    encoded = encode(samples, model, tokenizer)
    branching = architecture != "bloom" and getattr(model.config, "sliding_window", None) != 4  # Qwen asks for more
    assert sum(len(batch.input_ids) for batch in encoded.batches()) == 5 + (2 if branching else 5 + 3)
    read = torch.zeros(len(encoded.table.tokens))
    with torch.no_grad():
        for batch in encoded.batches():
            read[batch.entry] += batch.read(model)[0]
        expected = [plain_log_prob(model, tokenizer, s.prompt, a) for s in samples for a in s.answers]
    answers = np.add.reduceat(read.numpy(), encoded.table.first_token)
    np.testing.assert_allclose(answers, expected, rtol=1e-4, atol=1e-4)


def test_gold_batches_hold_the_same_answers(model, tokenizer):
    samples = make_samples(9)
    encoded = encode(samples, model, tokenizer, batch_size=4)
    for batch in encoded.gold_batches():
        for row, position, token, entry in zip(
            *(t.tolist() for t in (batch.row, batch.position, batch.token, batch.entry)), strict=True
        ):
            answer = int(np.searchsorted(encoded.table.first_token, entry, side="right")) - 1
            sample = int(np.searchsorted(encoded.table.first_answer, answer, side="right")) - 1
            assert answer - encoded.table.first_answer[sample] == samples[sample].gold
            gold = encoded.answers[sample][samples[sample].gold]
            assert tuple(batch.input_ids[row, : position + 1].tolist()) == gold.row[: position + 1]
            assert token == gold.tokens[entry - encoded.table.first_token[answer]]


def test_batches_of_some_samples_read_their_answers_alone(model, tokenizer):
    encoded = encode(make_samples(9), model, tokenizer)
    read = torch.cat([batch.entry for batch in encoded.batches([2, 7])])
    assert sorted(read.tolist()) == [4, 5, 14, 15]


def test_answers_of_one_token_share_the_row_of_their_prompt(model, tokenizer):
    encoded = encode([Sample("a b", choices=("c", "d", "e"), label=0)], model, tokenizer)
    assert [tuple(batch.input_ids.shape) for batch in encoded.batches()] == [(1, 2)]


@pytest.mark.parametrize("prompt", ["a b", "a b ", "a b\n"])
@pytest.mark.parametrize("answer", ["c d", " c d"])
def test_white_space_at_the_boundary_makes_no_difference_here(model, tokenizer, prompt, answer):
    [[encoded]] = encode([Sample(prompt, answer)], model, tokenizer).answers
    assert encoded.tokens == tuple(tokenizer("c d")["input_ids"])


def test_a_delimiter_stands_between_prompt_and_answer(model, tokenizer):
    [[encoded]] = encode([Sample("a", "c")], model, tokenizer, delimiter=" b ").answers
    assert encoded.tokens == tuple(tokenizer("b c")["input_ids"])


def merging(*, closed=False):
    """A tokenizer that merges "l" with "l", and may close every text."""
    tokens = Tokenizer(models.BPE({c: i for i, c in enumerate(["<e>", "H", "e", "l", "o", "ll", " "])}, [("l", "l")]))
    if closed:
        tokens.post_processor = processors.TemplateProcessing("$A <e>", special_tokens=[("<e>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=tokens, eos_token="<e>")


def test_a_token_that_merges_prompt_and_answer_belongs_to_the_answer(model):
    tokenizer = merging()
    [[encoded]] = encode([Sample("Hel", "lo")], model, tokenizer, delimiter="").answers
    assert tokenizer.convert_ids_to_tokens(encoded.tokens) == ["ll", "o"]


@pytest.mark.parametrize("closed", [False, True])
def test_an_end_that_is_text_stays_and_one_that_closes_a_text_goes(model, closed):
    tokenizer = merging(closed=closed)
    [[encoded]] = encode([Sample("He<e>", "lo")], model, tokenizer, delimiter="").answers
    assert tokenizer.convert_ids_to_tokens(encoded.row) == ["H", "e", "<e>", "l"]
    assert tokenizer.convert_ids_to_tokens(encoded.tokens) == ["l", "o"]


def test_a_prompt_longer_than_the_context_is_named(model, tokenizer):
    sample = Sample(" ".join("abcd" * 17), choices=("yes", "no"), label=0, source="train.jsonl:7")
    with pytest.raises(LasertriError, match="train.jsonl:7: expected at most 64 tokens.*got 68"):
        encode([sample], model, tokenizer)
