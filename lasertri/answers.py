"""Where a model is asked for an answer: after the prompt, in place of masks, or in a decoder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lasertri.errors import LasertriError
from lasertri.models import context_length, model_kind
from lasertri.tasks import MASK, Sample


@dataclass(frozen=True)
class Answer:
    """The tokens of one answer, and the model input that they are read from.

    Attributes:
        row: tokens of the input; of an encoder-decoder those of its encoder.
        tokens: of the answer; the i-th is read at place `start + i` of the row, or of the decoder where there is one.
        decoder: tokens of an encoder-decoder's decoder.
    """

    row: tuple[int, ...]
    tokens: tuple[int, ...]
    start: int
    decoder: tuple[int, ...] = ()


def answer_encoder(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, delimiter: str
) -> Callable[[Sample, str], Answer]:
    """How this model is asked for an answer's text.

    Raises:
        LasertriError: the tokenizer has no mask for a masked model, or the decoder's first token is not known. What is
            returned raises it for an answer without tokens, with several places, or longer than the model's context.
    """
    context = context_length(model)
    encode = {"causal": _following, "masked": _masked, "encoder-decoder": _decoded}[model_kind(model)](
        model, tokenizer, delimiter
    )

    def encoded(sample: Sample, text: str) -> Answer:
        answer = encode(sample, text)
        length = max(len(answer.row), len(answer.decoder))
        if not answer.row or not answer.tokens:
            raise LasertriError(f"{sample.source}: expected tokens for prompt and answer, came none for {text!r}")
        if context is not None and length > context:
            raise LasertriError(
                f"{sample.source}: expected at most {context:,} tokens, the model's context, came {length:,}; "
                "shorten the prompt or leave the row out"
            )
        return answer

    return encoded


def _following(
    _: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, delimiter: str
) -> Callable[[Sample, str], Answer]:
    """A causal model's answer begins with the first token that it changes, even where it merges with the prompt's."""
    closed = tokenizer("a")["input_ids"][-1:] == [tokenizer.eos_token_id]

    def tokens(text: str) -> list[int]:
        ids = list(tokenizer(text)["input_ids"])
        return ids[:-1] if closed else ids  # an answer does not end where the tokenizer closes a text

    def encode(sample: Sample, text: str) -> Answer:
        prompt, gap = _gap(sample.prompt, text, delimiter)
        before, whole = tokens(prompt), tokens(prompt + gap + text)
        start = next((i for i, (a, b) in enumerate(zip(before, whole, strict=False)) if a != b), len(before))
        return Answer(tuple(whole[:-1]) if start else (), tuple(whole[start:]), start - 1)

    return encode


def _masked(_: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, delimiter: str) -> Callable[[Sample, str], Answer]:
    """A masked model's answer stands for `MASK`, or at the prompt's end; its tokens are masked at once, as by LASER."""
    symbol, mask = tokenizer.mask_token, tokenizer.mask_token_id
    if mask is None or not tokenizer.is_fast:
        raise LasertriError(
            "expected a fast tokenizer with a mask token for a masked language model, "
            f"came {type(tokenizer).__name__}; pass the model's own"
        )

    def encode(sample: Sample, text: str) -> Answer:
        before, *after = sample.prompt.replace(symbol, MASK).split(MASK)
        if len(after) > 1:
            raise LasertriError(f"{sample.source}, prompt: expected at most one {MASK}, came {len(after)}")
        if not after:
            before = "".join(_gap(sample.prompt, text, delimiter))
        text = text.lstrip() if before[-1:].isspace() else text
        begin, end = len(before) - before.endswith(" "), len(before) + len(text)  # a space is of the word's first token
        whole = tokenizer(before + text + "".join(after), return_offsets_mapping=True)
        own = [i for i, (a, b) in enumerate(whole["offset_mapping"]) if a < end and b > begin]
        start, stop = (own[0], own[-1] + 1) if own else (0, 0)
        ids = whole["input_ids"]
        return Answer((*ids[:start], *[mask] * (stop - start), *ids[stop:]), tuple(ids[start:stop]), start)

    return encode


def _decoded(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, _: str) -> Callable[[Sample, str], Answer]:
    """An encoder-decoder's answer is its decoder's text, without what the tokenizer opens and closes texts with."""
    first = getattr(model.config, "decoder_start_token_id", None)
    if first is None:
        raise LasertriError(
            "expected decoder_start_token_id in the encoder-decoder's configuration, which its decoder starts from; "
            "set it in config.json or on model.config"
        )

    def encode(sample: Sample, text: str) -> Answer:
        target = tokenizer(text_target=text, return_special_tokens_mask=True)
        own = [i for i, special in enumerate(target["special_tokens_mask"]) if not special]
        start, end = (own[0], own[-1] + 1) if own else (0, 0)
        tokens = target["input_ids"][:end]
        return Answer(tuple(tokenizer(sample.prompt)["input_ids"]), tuple(tokens[start:]), start, (first, *tokens[:-1]))

    return encode


def _gap(prompt: str, text: str, delimiter: str) -> tuple[str, str]:
    """The prompt without white space at its end, and what stands between it and the answer."""
    stripped = prompt.rstrip()
    return stripped, prompt[len(stripped) :] or ("" if text[:1].isspace() else delimiter)
