"""Answers of masked models and encoder-decoders are read where they stand, as a row alone gives them."""

import numpy as np
import pytest
import torch
from subwords import wordpiece
from tiny import CLOSED, ENCODER_DECODERS, MASKED, OPENED, PAD, make_model, make_samples, make_tokenizer
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast, RobertaForCausalLM

from lasertri import LasertriError, Sample
from lasertri.data.sample import MASK
from lasertri.language.asking import Asked
from lasertri.language.samples import EncodedSamples
from lasertri.model.loading import context_length, model_kind

CHOICES = ("d e f", "g", "h i", "d e", "h j k")
LIMITS = [{}, {"tokens": 1}, {"tokens": 20}]


def encode(samples, model, tokenizer, **options):
    return EncodedSamples(samples, model=model, tokenizer=tokenizer, **options)


@torch.no_grad()
def read(model, encoded, **limit):
    """Every answer's log-probability, by batches."""
    log_probs = torch.zeros(len(encoded.table.tokens))
    for batch in encoded.batches(**limit):
        log_probs[batch.entry] += batch.read(model)[0]
    return np.add.reduceat(log_probs.numpy(), encoded.table.first_token)


def ids(tokenizer, text):
    return tokenizer(text, add_special_tokens=False)["input_ids"]


@torch.no_grad()
def masked_log_prob(model, tokenizer, prompt, answer):
    """One row, no padding: the words before, a mask for each of the answer's, the words after."""
    (before, after), words = (ids(tokenizer, part) for part in prompt.split(MASK)), ids(tokenizer, answer)
    row = [OPENED, *before, *[tokenizer.mask_token_id] * len(words), *after, CLOSED]
    log_probs = model(input_ids=torch.tensor([row])).logits[0].log_softmax(-1)
    return sum(log_probs[1 + len(before) + i, word].item() for i, word in enumerate(words))


@torch.no_grad()
def decoded_log_prob(model, tokenizer, prompt, answer, opened):
    """One pair of rows: the prompt, and the start token with the answer's words but for the last."""
    words, start = ids(tokenizer, answer), [PAD, OPENED] if opened else [PAD]
    logits = model(
        input_ids=torch.tensor([tokenizer(prompt)["input_ids"]]),
        decoder_input_ids=torch.tensor([[*start, *words[:-1]]]),
    ).logits
    log_probs = logits[0].log_softmax(-1)
    return sum(log_probs[len(start) - 1 + i, word].item() for i, word in enumerate(words))


@pytest.mark.parametrize("architecture", sorted(MASKED))
@pytest.mark.parametrize("limit", LIMITS, ids=str)
def test_a_masked_model_reads_what_a_row_alone_gives(architecture, limit):
    model, tokenizer = make_model(architecture), make_tokenizer(architecture)
    prompts = ["a b c", f"a b {MASK} c", f"{MASK} a", f"a b c d e f g h {MASK} i"]
    samples = [*make_samples(9), *(Sample(prompt, choices=CHOICES, label=2) for prompt in prompts)]
    found = read(model, encode(samples, model, tokenizer, batch_size=4), **limit)
    expected = [
        masked_log_prob(model, tokenizer, s.prompt if MASK in s.prompt else f"{s.prompt} {MASK}", answer)
        for s in samples
        for answer in s.answers
    ]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("architecture", sorted(ENCODER_DECODERS))
@pytest.mark.parametrize("limit", LIMITS, ids=str)
def test_an_encoder_decoder_reads_what_rows_alone_give(architecture, limit):
    model, tokenizer = make_model(architecture), make_tokenizer(architecture)
    samples = [*make_samples(9), *(Sample(prompt, choices=CHOICES, label=2) for prompt in ("a b c", "d"))]
    found = read(model, encode(samples, model, tokenizer, batch_size=4), **limit)
    expected = [
        decoded_log_prob(model, tokenizer, s.prompt, answer, architecture == "bart")
        for s in samples
        for answer in s.answers
    ]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_answers_of_as_many_tokens_share_a_masked_row():
    model, tokenizer = make_model("roberta"), make_tokenizer("roberta")
    [batch] = encode([Sample(f"a {MASK} b", choices=CHOICES, label=0)], model, tokenizer).batches()
    assert batch.input_ids.shape == (3, 7)
    assert sorted(batch.row.tolist()) == [0] + 4 * [1] + 6 * [2]


def test_answers_that_begin_alike_share_a_decoders_row():
    model, tokenizer = make_model("t5"), make_tokenizer("t5")
    choices = ("d", "e", "d e", "d f")  # the last two are read after the start token and "d"
    [batch] = encode([Sample("a b", choices=choices, label=0)], model, tokenizer).batches()
    assert sorted(batch.decoder_input_ids.tolist()) == sorted([[PAD, PAD], [PAD, *ids(tokenizer, "d")]])


def test_neither_end_nor_beginning_of_a_decoders_text_is_scored():
    for architecture in ENCODER_DECODERS:
        model, tokenizer = make_model(architecture), make_tokenizer(architecture)
        [[answer]] = encode([Sample("a b", "c d")], model, tokenizer).answers
        assert list(answer.tokens) == ids(tokenizer, "c d")
        assert list(answer.row) == tokenizer("a b")["input_ids"]


@pytest.mark.parametrize("architecture", ["roberta", "bert", "t5"])
def test_padding_is_the_models_own(architecture):
    model, tokenizer = make_model(architecture), make_tokenizer(architecture)
    [batch] = encode(make_samples(5), model, tokenizer).batches()
    padding = batch.input_ids[batch.attention_mask == 0]
    assert len(padding)
    assert set(padding.tolist()) == {PAD}


def test_gold_batches_are_of_the_right_answers_alone():
    for architecture in ("roberta", "t5"):
        encoded = encode(make_samples(9), make_model(architecture), make_tokenizer(architecture), batch_size=4)
        gold = [start + sample.gold for start, sample in zip(encoded.table.first_answer, encoded.samples, strict=True)]
        entries = torch.cat([batch.entry for batch in encoded.gold_batches()])
        assert sorted(entries.tolist()) == [encoded.table.first_token[answer] for answer in gold]


@pytest.mark.parametrize("prompt", ["a b", "a b ", f"a b{MASK}", f"a b {MASK}"])
@pytest.mark.parametrize("answer", ["c d", " c d"])
def test_white_space_around_a_mask_makes_no_difference_here(prompt, answer):
    tokenizer = make_tokenizer("bert")
    [[encoded]] = encode([Sample(prompt, answer)], make_model("bert"), tokenizer).answers
    joined = prompt == f"a b{MASK}" and answer == "c d"  # nothing stands between: "bc" is one word
    assert list(encoded.tokens) == ids(tokenizer, "bc d" if joined else "c d")


def trained(pre_tokenizer, decoder):
    """A tokenizer of subwords that marks spaces, its mask being its own "[M]"."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizer, decoder
    text = [
        "The cat is black . The dog is white ! snow"
    ] * 8  # a point between spaces is another token than one without
    options = {"special_tokens": ["[C]", "[S]", "[P]"], "initial_alphabet": ["5"], "vocab_size": 120}  # 5 never merges
    tokenizer.train_from_iterator(text, trainers.BpeTrainer(**options))
    tokenizer.post_processor = processors.TemplateProcessing("[C] $A [S]", special_tokens=[("[C]", 0), ("[S]", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, mask_token=AddedToken("[M]", lstrip=True), pad_token="[P]", eos_token="[S]"
    )


SUBWORDS = {
    "byte-level": lambda: trained(pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()),
    "metaspace": lambda: trained(pre_tokenizers.Metaspace(), decoders.Metaspace()),
}


@pytest.mark.parametrize("kind", SUBWORDS)
@pytest.mark.parametrize("prompt", [f"The cat is {MASK}.", f"The cat is {MASK}", "The cat is", f"The {MASK} is white!"])
@pytest.mark.parametrize("answer", ["black", " black", "cat", "snow white", "5"])
def test_an_answers_tokens_are_those_it_has_in_its_place(kind, prompt, answer):
    tokenizer, model = SUBWORDS[kind](), make_model("bert", vocab_size=200)
    [[encoded]] = encode([Sample(prompt, answer)], model, tokenizer).answers
    slot = prompt if MASK in prompt else f"{prompt} {MASK}"
    whole = tokenizer(slot.replace(MASK, answer.strip()))["input_ids"]
    unmasked = [*encoded.row]
    unmasked[encoded.start : encoded.start + len(encoded.tokens)] = encoded.tokens
    assert unmasked == whole
    assert encoded.row.count(tokenizer.mask_token_id) == len(encoded.tokens)
    assert tokenizer.decode(encoded.tokens).strip() == answer.strip()


def test_masked_choices_that_merge_with_their_neighbours_stand_for_the_same_stretch_of_text():
    tokenizer = wordpiece()
    model = make_model("bert", vocab_size=len(tokenizer))
    for before, after in (("the inter", ""), ("the inter", "s the")):
        prompt = f"{before}{MASK}{after}" if after else before
        sample = Sample(prompt, choices=("national", "view"), label=0)
        [answers] = encode([sample], model, tokenizer, delimiter="").answers
        for choice, answer in zip(sample.choices, answers, strict=True):
            whole = tokenizer(f"{before}{choice}{after}")["input_ids"]
            end = len(whole) - (2 if after else 1)  # "views" is one token: "s" after it is masked in both
            assert (answer.start, list(answer.tokens)) == (2, whole[2:end])
            masks = [tokenizer.mask_token_id] * (end - 2)
            assert list(answer.row) == [*whole[:2], *masks, *whole[end:]]


def test_a_tokenizers_own_mask_may_mark_the_place():
    tokenizer, model = SUBWORDS["byte-level"](), make_model("bert", vocab_size=200)
    samples = [Sample(f"The cat is {mask}.", "black") for mask in (MASK, "[M]")]
    [[one], [other]] = encode(samples, model, tokenizer).answers
    assert one == other


@pytest.mark.parametrize(
    ("architecture", "prompt", "answer", "expected"),
    [
        ("gptj", "a b", "c", ("a b", " ", "c")),
        ("gptj", "a b \n", "c", ("a b", " \n", "c")),
        ("gptj", "a b", "\tc", ("a b", "", "\tc")),
        ("roberta", "a b", "c", ("a b", " ", "c")),
        ("roberta", f"a {MASK} b", "c", ("a ", "", "c", " b")),
        ("t5", "a b", "c", ("a b", "", "c")),
    ],
)
def test_how_the_first_sample_is_asked_is_shown_with_its_white_space(architecture, prompt, answer, expected):
    samples = [Sample(prompt, choices=("d", answer), label=1), *make_samples(2)]
    asked = encode(samples, make_model(architecture), make_tokenizer(architecture)).asked
    assert asked == Asked(*expected)
    assert str(asked).startswith(f"prompt {expected[0]!r}, border {expected[1]!r}, answer {expected[2]!r}")
    assert len(str(Asked("x" * 9999, " ", "y\n" * 9999))) < 600


def test_what_a_masked_model_lacks_is_said(tokenizer):
    model, marked = make_model("roberta"), make_tokenizer("roberta")
    with pytest.raises(LasertriError, match="expected a fast tokenizer with a mask token"):
        encode(make_samples(1), model, tokenizer)
    for prompt in (f"a {MASK} b {MASK}", f"{MASK}{MASK}"):
        with pytest.raises(LasertriError, match="row 7, prompt: expected at most one <mask>, got 2"):
            encode([Sample(prompt, "c", source="row 7")], model, marked)


def test_a_decoder_without_a_start_is_named():
    model = make_model("t5", decoder_start_token_id=None)
    with pytest.raises(LasertriError, match="expected decoder_start_token_id"):
        encode(make_samples(1), model, make_tokenizer("t5"))


def test_roberta_has_fewer_places_than_positions():
    model, tokenizer = make_model("roberta"), make_tokenizer("roberta")
    assert context_length(model) == 62
    assert context_length(make_model("bert")) == 64
    encoded = encode([Sample("a " * 59 + MASK, "b")], model, tokenizer)
    assert np.isfinite(read(model, encoded)).all()
    with pytest.raises(LasertriError, match="expected at most 62 tokens.*got 63"):
        encode([Sample("a " * 60 + MASK, "b")], model, tokenizer)


def test_a_decoder_made_of_an_encoder_is_read_as_any_causal_model():
    roberta = make_model("roberta", is_decoder=True)
    model = RobertaForCausalLM(roberta.config).eval()
    tokenizer = make_tokenizer("gptj")
    assert model_kind(model) == "causal"
    samples = [Sample("a b c", choices=CHOICES, label=2)]
    expected = []
    for answer in CHOICES:
        context, whole = tokenizer("a b c")["input_ids"], tokenizer(f"a b c {answer}")["input_ids"]
        log_probs = model(torch.tensor([whole])).logits[0].log_softmax(-1)
        expected.append(sum(log_probs[i - 1, whole[i]].item() for i in range(len(context), len(whole))))
    np.testing.assert_allclose(read(model, encode(samples, model, tokenizer)), expected, rtol=1e-4, atol=1e-4)
