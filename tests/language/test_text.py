"""A text in windows: nothing is both learned from and measured on, and what is read is what stands there."""

import pytest
import torch
from tiny import PAD, make_model, make_tokenizer

from lasertri import LasertriError
from lasertri.data.neutral import neutral_text
from lasertri.demo import MODEL_DIR
from lasertri.language.text import EncodedText, knows
from lasertri.model.loading import load_tokenizer

TEXT = " ".join(["yes no a b c d e f g h i j k l m n o p q r s t u v w x y z"] * 20)


def encoded(name, text=TEXT):
    model = make_model(name)
    return model, EncodedText(text, model=model, tokenizer=make_tokenizer(name))


def test_a_causal_model_reads_every_next_token_of_the_held_out_windows():
    model, text = encoded("gptj")
    read = text.read(model)
    expected, tokens = [], []
    for batch in text.held_out:
        logits = model(batch.input_ids).logits[0].float().log_softmax(-1)
        expected.append(logits[:-1])
        tokens.append(batch.input_ids[0, 1:])
    torch.testing.assert_close(read.log_probs, torch.cat(expected).detach(), rtol=0, atol=1e-5)
    assert read.tokens.equal(torch.cat(tokens))
    own = read.log_probs.gather(-1, read.tokens[:, None])
    assert read.perplexity == pytest.approx(float((-own.mean()).exp()))


def test_every_fourth_window_is_held_out_and_no_row_is_padded():
    _, text = encoded("gptj")  # 560 tokens in windows of the model's 64
    assert [batch.input_ids.shape for batch in text.held_out] == [(1, 64)] * 2
    assert sorted(tuple(batch.input_ids.shape) for batch in text.calibration) == [(1, 48), (6, 64)]
    assert all(batch.attention_mask.all() for batch in text.calibration)


def test_a_masked_model_reads_the_tokens_under_its_masks():
    model, text = encoded("roberta")
    read, tokenizer = text.read(model), make_tokenizer("roberta")
    batch = text.held_out[0]
    ids = batch.input_ids[0].tolist()
    masks = [i for i, token in enumerate(ids) if token == tokenizer.mask_token_id]
    assert masks[0] == 1  # after what opens the text
    assert len(masks) == len(batch.entry) == -(-(len(ids) - 2) // 7)
    assert tokenizer.mask_token_id not in read.tokens


def test_an_encoder_decoder_goes_on_from_the_first_half():
    model, text = encoded("t5")
    read = text.read(model)
    [batch] = text.held_out
    assert batch.decoder_input_ids[0, 0] == PAD
    assert read.tokens[:-1].equal(batch.decoder_input_ids[0, 1:])
    assert batch.input_ids[0, -1] == make_tokenizer("t5").eos_token_id


def test_the_neutral_text_is_long_enough_for_any_tokenizer(monkeypatch):
    monkeypatch.setattr("lasertri.language.text.knows", lambda *_: True)
    _, text = encoded("gptj", neutral_text())
    assert 300 < sum(len(batch.entry) for batch in text.held_out) < 640
    assert sum(batch.input_ids.numel() for batch in text.calibration) > 1000


def test_a_tokenizer_knows_a_text_when_most_of_it_has_tokens():
    tokenizer = make_tokenizer()
    assert knows(TEXT, tokenizer)
    assert knows("a b what", tokenizer)
    assert not knows("a what then", tokenizer)
    tokenizer(TEXT, truncation=True, max_length=2)  # which the tokenizer goes on doing, unless told otherwise
    assert knows(TEXT, tokenizer)


def test_a_text_of_unknown_tokens_is_an_error():
    with pytest.raises(LasertriError, match="hardly a token for"):
        encoded("gptj", neutral_text())
    demo = load_tokenizer(MODEL_DIR)  # of symbols alone, and raises at any other
    with pytest.raises(LasertriError, match="hardly a token for"):
        EncodedText(neutral_text(), model=make_model("gptj"), tokenizer=demo)


def test_a_text_too_short_is_an_error():
    with pytest.raises(LasertriError, match=r"at least 384 tokens, .* got 3; give a longer one"):
        encoded("gptj", "yes no a")
