"""What a model writes: the same as token by token, one prompt at a time, without a cache; and what counts as right."""

import copy
import logging
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from marks import slow, slow_but
from subwords import byte_level, metaspace, wordpiece
from tiny import CAUSAL, ENCODER_DECODERS, MASKED, make_model, make_samples, make_tokenizer
from transformers import GenerationConfig

from lasertri import LasertriError, Sample, adapt
from lasertri.demo import MODEL_DIR
from lasertri.demo.recall import samples as recall_samples
from lasertri.edit.candidate import Candidate
from lasertri.edit.edit import all_applied
from lasertri.edit.truncation import Truncation
from lasertri.factors.store import FactorStore
from lasertri.language.generation import written
from lasertri.language.samples import EncodedSamples
from lasertri.measure.evaluate import evaluate
from lasertri.model.preserve import preserved
from lasertri.model.targets import find_targets
from lasertri.search.settings import Settings
from lasertri.search.trials import run_trials

WINDOWS = (5, 5, 1, 7, 5)


def asking(count, windows=WINDOWS):
    """Samples with prompts of 2 to 6 words that ask for texts of different lengths."""
    return [
        Sample(sample.prompt, "yes", match="contains", window=windows[i % len(windows)])
        for i, sample in enumerate(make_samples(count))
    ]


def encode(samples, model, tokenizer, batch_size=4):
    return EncodedSamples(samples, model=model, tokenizer=tokenizer, batch_size=batch_size)


@torch.no_grad()
def slowly(model, tokenizer, sample, ends=(), *, window=None):
    """One prompt, one token at a time, no padding, no cache."""
    tokens, start = tokenizer(sample.prompt)["input_ids"], len(tokenizer(sample.prompt)["input_ids"])
    for _ in range(window or sample.window):
        token = model(torch.tensor([tokens]), use_cache=False).logits[0, -1].argmax().item()
        if token in ends:
            break
        tokens = [*tokens, token]
    return tokenizer.decode(tokens[start:])


@torch.no_grad()
def at_once(model, tokenizer, sample):
    """One prompt with masks at its end, no padding."""
    masked = tokenizer(f"{sample.prompt} {' '.join(['<mask>'] * sample.window)}")["input_ids"]
    places = [i for i, token in enumerate(masked) if token == tokenizer.mask_token_id]
    return tokenizer.decode(model(torch.tensor([masked])).logits[0, places].argmax(-1).tolist())


@torch.no_grad()
def decoded_slowly(model, tokenizer, sample, end):
    """One prompt for the encoder, one token of the decoder at a time, no padding, no cache."""
    tokens = [model.config.decoder_start_token_id]
    prompt = torch.tensor([tokenizer(sample.prompt)["input_ids"]])
    for _ in range(sample.window):
        logits = model(input_ids=prompt, decoder_input_ids=torch.tensor([tokens]), use_cache=False).logits
        token = logits[0, -1].argmax().item()
        if token == end:
            break
        tokens.append(token)
    return tokenizer.decode(tokens[1:])


@pytest.mark.parametrize("architecture", sorted(MASKED))
def test_a_masked_model_fills_its_masks_at_once(architecture):
    model, tokenizer, samples = make_model(architecture), make_tokenizer(architecture), asking(11)
    texts = dict(written(model, encode(samples, model, tokenizer)))
    assert texts == {i: at_once(model, tokenizer, sample) for i, sample in enumerate(samples)}
    assert len(set(texts.values())) > 2
    inside = [replace(sample, prompt=f"{sample.prompt} <mask> z") for sample in samples]
    [(_, text)] = written(model, encode(inside[:1], model, tokenizer))
    row = tokenizer(inside[0].prompt.replace("<mask>", " ".join(["<mask>"] * inside[0].window)))["input_ids"]
    with torch.no_grad():
        best = model(torch.tensor([row])).logits[0].argmax(-1)
    filled = [t for t, token in zip(best.tolist(), row, strict=True) if token == tokenizer.mask_token_id]
    assert text == tokenizer.decode(filled)


@pytest.mark.parametrize("architecture", sorted(ENCODER_DECODERS))
def test_an_encoder_decoder_writes_what_a_slow_loop_does(architecture):
    model, tokenizer, samples = make_model(architecture), make_tokenizer(architecture), asking(11)
    texts = dict(written(model, encode(samples, model, tokenizer)))
    end = model.generation_config.eos_token_id
    assert texts == {i: decoded_slowly(model, tokenizer, sample, end) for i, sample in enumerate(samples)}
    assert len(set(texts.values())) > 2


@pytest.mark.parametrize("pad", ["<pad>", None])
@pytest.mark.parametrize("architecture", slow_but("gptj", "llama", "gemma2", "bloom", "mixtral", of=sorted(CAUSAL)))
def test_padded_batches_write_what_a_slow_loop_does(tokenizer, architecture, pad):
    model, tokenizer, samples = make_model(architecture), copy.deepcopy(tokenizer), asking(11)
    tokenizer.pad_token = pad
    texts = dict(written(model, encode(samples, model, tokenizer)))
    assert texts == {i: slowly(model, tokenizer, sample) for i, sample in enumerate(samples)}
    assert len(set(texts.values())) > 5


@pytest.mark.parametrize("architecture", ["gptj", "gpt2", "llama"])
def test_in_bf16_every_token_is_the_most_probable_but_for_rounding(model_of, tokenizer, architecture):
    model, samples = model_of(architecture, dtype=torch.bfloat16), asking(11)
    exact = copy.deepcopy(model).double()
    for i, text in written(model, encode(samples, model, tokenizer)):
        before, after = (tokenizer(part)["input_ids"] for part in (samples[i].prompt, text))
        assert len(after) == samples[i].window
        with torch.no_grad():
            logits = exact(torch.tensor([[*before, *after]])).logits[0, len(before) - 1 : -1]
        behind = logits.amax(-1) - logits.gather(-1, torch.tensor(after).unsqueeze(-1)).squeeze(-1)
        assert (behind <= 8 * torch.finfo(torch.bfloat16).eps * logits.abs().amax()).all()


@pytest.mark.parametrize("whose", ["model", "model's several", "tokenizer"])
def test_a_text_stops_at_its_end(model, tokenizer, whose):
    samples, tokenizer = asking(11), copy.deepcopy(tokenizer)
    ends = [tokenizer(slowly(model, tokenizer, samples[i]))["input_ids"][at] for i, at in ((0, 2), (1, 0))]
    if whose == "tokenizer":
        ends, tokenizer.eos_token = ends[:1], tokenizer.convert_ids_to_tokens(ends[0])
    else:
        ends = ends if whose == "model's several" else ends[:1]
        model.generation_config.eos_token_id = ends if len(ends) > 1 else ends[0]
    texts = dict(written(model, encode(samples, model, tokenizer)))
    assert texts == {i: slowly(model, tokenizer, sample, ends) for i, sample in enumerate(samples)}
    assert len(texts[0].split()) <= 2
    assert whose != "model's several" or not texts[1]


def test_the_models_own_settings_change_nothing_warn_of_nothing_and_stay(model, tokenizer, caplog):
    samples = asking(7)
    expected = {i: slowly(model, tokenizer, sample) for i, sample in enumerate(samples)}
    model.generation_config = own = GenerationConfig(
        do_sample=True, temperature=0.6, top_p=0.9, num_beams=3, max_length=3, repetition_penalty=9.0,
        no_repeat_ngram_size=1, suppress_tokens=list(range(20)), min_new_tokens=4, forced_eos_token_id=25,
        num_return_sequences=2, return_dict_in_generate=True,
    )  # fmt: skip
    before = own.to_dict()
    logging.getLogger("transformers").propagate = True
    with warnings.catch_warnings(), caplog.at_level(logging.WARNING):
        warnings.simplefilter("error")
        texts = dict(written(model, encode(samples, model, tokenizer)))
    logging.getLogger("transformers").propagate = False
    assert texts == expected
    assert model.generation_config is own
    assert own.to_dict() == before
    assert not caplog.records


def test_only_chosen_samples_that_ask_for_it_are_written(model, tokenizer):
    samples = [Sample("a b", "c"), *asking(5), *make_samples(2)]
    encoded = encode(samples, model, tokenizer)
    assert sorted(i for i, _ in written(model, encoded, [0, 2, 5, 7])) == [2, 5]
    assert sorted(dict(written(model, encoded))) == [1, 2, 3, 4, 5]


def test_a_text_that_does_not_fit_the_context_is_named(model, tokenizer):
    prompt = " ".join("abc" * 20)
    encode([Sample(prompt, "yes", match="contains", window=5)], model, tokenizer)
    with pytest.raises(LasertriError, match="train.jsonl:7: expected at most 64 tokens.*got 65"):
        encode([Sample(prompt, "yes", match="contains", window=6, source="train.jsonl:7")], model, tokenizer)


@pytest.mark.parametrize(
    ("match", "text", "right"),
    [
        ("text", " paris\n", True),
        ("text", "PARIS", True),
        ("text", "paris is", False),
        ("text", "pari", False),
        ("contains", "the city of PARIS, in", True),
        ("contains", "comparison", True),  # a substring, as in the papers
        ("contains", "Par is", False),
        ("contains", "", False),
        ("contains", "Rome", False),
        ("contains-with-prompt", "Rome", False),
    ],
)
def test_case_and_outer_white_space_make_no_difference(match, text, right):
    sample = Sample("The capital of France is", " Paris ", match=match, window=0 if match == "text" else 5)
    assert sample.accepts(text) is right


REREAD = ["well-known", "U.S.", "£4.56", "O'Brien", "3.5%", "'s", "Café (x)", "a,b", "don't"]


@pytest.mark.parametrize("architecture", ["gpt2", "bert"])
@pytest.mark.parametrize("match", ["text", "contains", "contains-with-prompt"])
@pytest.mark.parametrize(
    ("make", "right"),
    [
        *((wordpiece, text) for text in REREAD),
        (metaspace, "ﬁve"),
        (metaspace, "x²"),
        (metaspace, "cafe\u0301"),
        (metaspace, "１２"),
        (byte_level, "well-known"),
    ],
)
def test_what_a_tokenizer_does_not_read_back_as_it_was_is_found_all_the_same(make, right, match, architecture):
    tokenizer = make(mask_token="[M]") if make is not wordpiece else make()
    model, window = make_model(architecture, vocab_size=len(tokenizer)), 0 if match == "text" else 9
    encoded = encode([Sample("the", right, match=match, window=window)], model, tokenizer)
    for text, accepted in ((right, True), ("inter", False), ("", False)):
        tokens = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert encoded.table.accepts(0, tokenizer.decode(tokens)) is accepted
        in_a_text = tokenizer.decode(tokenizer(f"the {text}, the", add_special_tokens=False)["input_ids"])
        assert encoded.table.accepts(0, in_a_text) is (accepted and match != "text")


def test_what_a_tokenizer_does_not_know_is_not_found_in_what_else_it_does_not_know():
    tokenizer = wordpiece()
    model = make_model("gpt2", vocab_size=len(tokenizer))
    encoded = encode([Sample("the", "☃", match="contains", window=3)], model, tokenizer)
    assert tokenizer("☃")["input_ids"] == tokenizer("☂")["input_ids"]
    assert not encoded.table.accepts(0, "[UNK]")


def test_an_answer_in_the_prompt_counts_only_by_lasers_rule(model, tokenizer):
    prompt = "a b yes c"
    text = slowly(model, tokenizer, Sample(prompt, "yes", match="contains", window=4))
    assert "yes" not in text
    rules = ["contains", "contains-with-prompt"]
    samples = [Sample(prompt, answer, match=rule, window=4) for answer in ("YES", f"c {text[:1]}") for rule in rules]
    assert evaluate(model, encode(samples, model, tokenizer)).correct.tolist() == [False, True, False, True]


def with_answers(model, tokenizer, count=31):
    """Samples of which the model answers about half."""
    samples = asking(count)
    texts = [slowly(model, tokenizer, sample).split() for sample in samples]
    answers = [text[len(text) // 2] if i % 2 else "q z" for i, text in enumerate(texts)]
    return [replace(sample, completion=answer) for sample, answer in zip(samples, answers, strict=True)]


@pytest.mark.parametrize("edit", ["step", "truncate"])
def test_what_a_model_gives_that_is_never_right_is_told_before_the_search_is_over(model, tokenizer, edit, caplog):
    # its answers, one place wrong
    asked = [Sample(s.prompt, "yes") for s in make_samples(41)]
    given = [slowly(model, tokenizer, s, window=1) for s in asked]
    wrong = [replace(s, completion="a" if text != "a" else "b") for s, text in zip(asked, given, strict=True)]
    options = {"edit": edit, "targets": r"h\.0\.mlp", "progress": False, "calibration": 20}
    with caplog.at_level(logging.INFO, "lasertri"):
        result = adapt(model, wrong, tokenizer=tokenizer, **options)
    assert f"asked so: prompt {asked[0].prompt!r}, border ' ', answer {wrong[0].completion!r}" in caplog.text
    assert "none of 20 samples is answered rightly: the model gave" in caplog.text
    assert len(result.to_dict()["instead"]) == 3
    assert "WARNING: none of 20" in str(result)
    right = [replace(s, completion=text) for s, text in zip(asked, given, strict=True)]
    assert evaluate(model, encode(right[:1] + wrong, model, tokenizer)).warning is None
    instead = evaluate(model, encode(wrong, model, tokenizer)).instead
    assert instead == [(s.completion, text) for s, text in zip(wrong, given, strict=True)][:3]


def test_rules_may_mix_and_each_counts_as_alone(model, tokenizer):
    free = [Sample(s.prompt, "yes", match="text" if i % 2 else "tokens") for i, s in enumerate(make_samples(9))]
    kinds = [with_answers(model, tokenizer), free, make_samples(8)]
    alone = [evaluate(model, encode(samples, model, tokenizer)).correct for samples in kinds]
    together = evaluate(model, encode([*kinds[2], *kinds[0], *kinds[1]], model, tokenizer)).correct
    assert together.tolist() == [*alone[2], *alone[0], *alone[1]]
    assert 0 < alone[0].mean() < 1


@pytest.mark.parametrize("race", [False, True])
@pytest.mark.parametrize("architecture", ["gptj", slow("llama")])
def test_a_trial_is_what_an_edited_copy_gives(model_of, tokenizer, architecture, race):
    model = model_of(architecture)
    samples = encode(with_answers(model, tokenizer), model, tokenizer)
    targets = find_targets(model)
    candidates = [Candidate(target, k, ratio) for target in targets[:3] for k, ratio in ((1, 0.5), (3, 0.0))]
    store = FactorStore(model, targets, [1, 3], budget=1 << 30)
    with preserved(model):
        baseline, trials = run_trials(model, candidates, samples, store, Settings(race=race, progress=False))
        edits = [Truncation.build(candidate, model, store) for candidate in candidates]
    own = evaluate(model, samples)
    assert baseline.correct.tolist() == own.correct.tolist()
    seen = 0
    for trial, edit in zip(trials, edits, strict=True):
        edited = copy.deepcopy(model)
        edit.apply(edited)
        expected = evaluate(edited, samples)
        if trial.finished:
            assert trial.measurement.correct.tolist() == expected.correct.tolist()
            assert trial.measurement.log_loss == pytest.approx(expected.log_loss, rel=1e-5)
            assert trial.gain.tolist() == (expected.correct.astype(int) - own.correct).tolist()
            seen += np.abs(trial.gain).sum()
    assert seen
    assert race or all(trial.finished for trial in trials)


@pytest.mark.parametrize("rule", [{"match": "contains", "window": 1}, {"match": "text"}], ids=str)
def test_adapting_by_another_rule(rule):
    def asked(count, seed):
        return [replace(sample, **rule) for sample in recall_samples(count, seed=seed)]

    held_out = asked(80, 12)
    result = adapt(
        str(MODEL_DIR), asked(50, 11), held_out=held_out, targets=r"h\.0\.mlp", blocks=(2,), ratios=(0.6, 0.4),
        calibration=50, progress=False,
    )  # fmt: skip
    assert result.edit.candidate.target.role == "fc_in"
    assert result.held_out.verdict == "helps"
    for edits, measured in (([], result.held_out.baseline), (result.edits, result.held_out.edited)):
        with all_applied(edits, result.model):
            right = [s.accepts(slowly(result.model, result.tokenizer, s, window=1)) for s in held_out]
        assert measured.correct.sum() == sum(right)


STATEFUL = {
    "rwkv": {"context_length": 64, "attention_hidden_size": 16},
    "recurrent_gemma": {"lru_width": 16, "attention_window_size": 64, "num_key_value_heads": 2, "head_dim": 4},
}


@pytest.mark.parametrize(
    ("name", "alike"), [("rwkv", False), ("recurrent_gemma", False), ("gptj", True), ("opt", True)]
)
def test_a_model_whose_state_sees_padding_is_asked_one_by_one(name, alike, caplog):
    own = {"hidden_size": 16, "num_attention_heads": 4, "intermediate_size": 40, "num_hidden_layers": 3}
    model = make_model(name, **own | STATEFUL[name]) if name in STATEFUL else make_model(name)
    samples = [Sample("a b c d e f g h i j k"[: 3 + 4 * (i % 4)], "yes", match="contains", window=3) for i in range(9)]
    encoded = {n: EncodedSamples(samples, model=model, tokenizer=make_tokenizer(), batch_size=n) for n in (1, 4)}
    alone, together, again = (dict(written(model, encoded[n])) for n in (1, 4, 4))
    assert together == alone == again
    assert caplog.text.count("answers otherwise where its prompt is padded: prompts are continued one by one") == (
        not alike
    )
