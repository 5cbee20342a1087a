"""Loss and measure read the same answer tokens, at the positions that predict them."""

import copy

import numpy as np
import pytest
import torch
from marks import slow_but
from subwords import byte_level, metaspace, wordpiece
from tiny import CAUSAL, WORDS, make_model, make_samples, make_tokenizer
from tokenizers import Tokenizer, models, processors
from transformers import PreTrainedTokenizerFast

from lasertri import LasertriError, Sample, adapt
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


def log_prob_after(model, ids, start):
    """Of the tokens from this one on, given those before, in one row alone."""
    with torch.no_grad():
        log_probs = model(torch.tensor([ids])).logits[0].log_softmax(-1)
    return sum(log_probs[i - 1, ids[i]].item() for i in range(start, len(ids)))


CHOICES_THAT_MERGE = ("national", "view", "s", "nationals")


@pytest.mark.parametrize("architecture", ["gptj", "bloom"])  # bloom's choices have a row each
@pytest.mark.parametrize("make", [byte_level, metaspace, wordpiece])
def test_choices_that_merge_with_the_prompt_are_read_as_the_tokenizer_splits_their_text(make, architecture):
    tokenizer = make()
    model = make_model(architecture, vocab_size=len(tokenizer))
    encoded = encode([Sample("the inter", choices=CHOICES_THAT_MERGE, label=0)], model, tokenizer, delimiter="")
    wholes = [tokenizer(f"the inter{choice}", add_special_tokens=False)["input_ids"] for choice in CHOICES_THAT_MERGE]
    opened = [1] if make is wordpiece else []
    prompt = tokenizer("the inter", add_special_tokens=False)["input_ids"]
    assert len(wholes[0]) == len(prompt), "one token where the prompt's last was"
    start = len(opened) + len(prompt) - 1  # all are read from where "international" begins
    expected = [log_prob_after(model, [*opened, *whole], start) for whole in wholes]
    with torch.no_grad():
        readings = encoded.read(model)
        losses = sum(float(batch.loss(model)) for batch in encoded.loss_batches([0]))
    np.testing.assert_allclose(encoded.table.per_answer(readings.log_probs), expected, rtol=1e-4, atol=1e-4)
    assert losses == pytest.approx(float(readings.sample_losses()[0]), rel=1e-4)


def test_choices_that_do_not_merge_are_read_after_the_whole_prompt():
    tokenizer = byte_level()
    model = make_model("gptj", vocab_size=len(tokenizer))
    [answers] = encode([Sample("the inter", choices=("view", "s"), label=0)], model, tokenizer, delimiter="").answers
    assert [tokenizer.decode(answer.tokens) for answer in answers] == ["view", "s"]
    [[spaced, _]] = encode([Sample("the inter ", choices=("view", "s"), label=0)], model, tokenizer).answers
    assert tokenizer.decode(spaced.tokens) == " view", "white space at the prompt's end is the answer's"


def test_an_answer_that_merges_with_the_whole_prompt_is_refused():
    tokenizer = byte_level()
    model = make_model("gptj", vocab_size=len(tokenizer))
    with pytest.raises(LasertriError, match="row 3: expected tokens for prompt and answer.*write more before it"):
        encode([Sample(" inter", "national", source="row 3")], model, tokenizer, delimiter="")


@pytest.mark.parametrize(
    ("make", "choices"),
    [
        (wordpiece, ("Paris", "paris")),
        (wordpiece, ("\u2603", "\u2602")),
        (wordpiece, ("cafe", "café")),
        (metaspace, ("x²", "x2")),
    ],
)
@pytest.mark.parametrize("architecture", ["gpt2", "bert"])
def test_choices_of_the_same_tokens_are_refused(make, choices, architecture):
    tokenizer = make(mask_token="[M]") if make is metaspace else make()
    model = make_model(architecture, vocab_size=len(tokenizer))
    sample = Sample("the", choices=("view", *choices), label=0, source="train.jsonl:4")
    with pytest.raises(LasertriError, match=f"train.jsonl:4, choices: .* got '{choices[0]}' and '{choices[1]}'"):
        encode([sample], model, tokenizer)


@pytest.mark.parametrize("eos", [None, "the", "[UNK]"])
def test_what_a_tokenizer_puts_around_texts_is_asked_of_it(eos):
    tokenizer = wordpiece(eos_token=eos)
    model = make_model("gpt2", vocab_size=len(tokenizer))
    [[answer]] = encode([Sample("the", "the inter")], model, tokenizer).answers
    assert tokenizer.convert_ids_to_tokens(answer.row) == ["[CLS]", "the", "the"]
    assert tokenizer.convert_ids_to_tokens(answer.tokens) == ["the", "inter"]
    [[answer]] = encode([Sample("[CLS] the", "inter")], model, tokenizer).answers
    assert tokenizer.convert_ids_to_tokens(answer.row) == ["[CLS]", "the"]


@pytest.mark.parametrize("kind", ["calibration", "held out"])
def test_a_token_that_the_model_lacks_is_named_before_the_work(tokenizer, kind):
    model, samples = make_model("gptj", vocab_size=len(WORDS) - 1), make_samples(48)
    samples = [s for s in samples if "z" not in s.prompt]
    lacking = Sample("a z b", choices=("yes", "no"), label=0, source="x.jsonl:9")
    given = {"samples": [lacking, *samples]} if kind == "calibration" else {"samples": samples, "held_out": [lacking]}
    with pytest.raises(LasertriError, match=r"x.jsonl:9: expected tokens below 29, .*, got 29 \('z'\)"):
        adapt(model, tokenizer=tokenizer, **given)
    with pytest.raises(LasertriError, match="a sample: expected tokens below 29"):
        encode([Sample("a", "z")], model, tokenizer)
    with pytest.raises(LasertriError, match="a sample: expected tokens below 29"):
        encode([Sample("z", "a", match="contains", window=2)], model, tokenizer)


def test_settings_of_model_and_tokenizer_that_no_token_can_be_made_of_are_named(tokenizer):
    odd = copy.deepcopy(tokenizer)
    odd.model_max_length = "64"
    with pytest.raises(LasertriError, match="expected a number as model_max_length .*, got '64'"):
        encode([Sample("a", "b")], make_model("gptj"), odd)
    model, words = make_model("t5"), make_tokenizer("t5")
    for start in ({"a": 1}, 99, -1):
        model.config.decoder_start_token_id = start
        with pytest.raises(LasertriError, match=f"expected tokens below {len(words)}, .*, got {start}"):
            encode([Sample("a", "b")], model, words)


OPENING = ['is "', 'is ("', "is (", "is [", "is “", "is „", 'is key="', "is `", "is '", "is 「", '"', "is «", "is ```"]
CLOSED = ["is", 'is "x"', "is it's", "is dogs'", "is (x)", "is „x“", 'is 5"', "is `x`", "is x."]


@pytest.mark.parametrize("prompt", [*OPENING, *CLOSED])
def test_no_space_comes_after_an_opening_quotation_mark_or_bracket(prompt):
    tokenizer = byte_level()
    model = make_model("gptj", vocab_size=len(tokenizer))
    for delimiter, expected in ((" ", "" if prompt in OPENING else " "), ("\n", "\n")):
        [[answer]] = encode([Sample(prompt, "view")], model, tokenizer, delimiter=delimiter).answers
        assert tokenizer.decode(answer.row + answer.tokens[-1:]) == f"{prompt}{expected}view"
    [[own]] = encode([Sample(prompt, "view", delimiter=" ")], model, tokenizer).answers
    assert tokenizer.decode(own.row + own.tokens[-1:]) == f"{prompt} view"


def test_a_prompt_longer_than_the_context_is_named(model, tokenizer):
    sample = Sample(" ".join("abcd" * 17), choices=("yes", "no"), label=0, source="train.jsonl:7")
    with pytest.raises(LasertriError, match="train.jsonl:7: expected at most 64 tokens.*got 68"):
        encode([sample], model, tokenizer)
