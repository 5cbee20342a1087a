"""Where a model is asked for an answer: after the prompt, in place of masks, or in a decoder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lasertri.data.chat import chat_text
from lasertri.data.sample import MASK, Sample
from lasertri.errors import LasertriError
from lasertri.model.loading import context_length, model_kind


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


@dataclass(frozen=True)
class Asking:
    """How one model is asked.

    Attributes:
        answer: a sample and one of its answers -> `Answer`.
        prompt: a sample -> the tokens that a text is written after; of a masked model those around `window` masks.
    """

    answer: Callable[[Sample, str], Answer]
    prompt: Callable[[Sample], tuple[int, ...]]


def asking(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, delimiter: str, chat: bool = False) -> Asking:
    """How this model is asked, with every length checked.

    Args:
        delimiter: stands between prompt and answer, unless one of them has white space there or the sample its own.
        chat: the prompt is the user's turn in the tokenizer's chat template, and the answer the model's, as it is.

    Raises:
        LasertriError: the tokenizer has no mask for a masked model, the decoder's first token is not known, or `chat`
            with another than a causal model. What is returned raises it for an answer without tokens, with several
            places, or longer than the model's context, and with `chat` where there is no template or a sample has a
            delimiter of its own.
    """
    kind, context = model_kind(model), context_length(model)
    if kind == "causal":
        how = _following(tokenizer, delimiter, chat)
    elif chat:
        raise LasertriError(f"expected a causal language model for a chat, got one of kind {kind}")
    else:
        how = _masked(tokenizer, delimiter) if kind == "masked" else _decoded(model, tokenizer)

    def check(length: int, sample: Sample) -> None:
        if context is not None and length > context:
            raise LasertriError(
                f"{sample.source}: expected at most {context:,} tokens, the model's context, got {length:,}; "
                "shorten the prompt or leave the row out"
            )

    def answer(sample: Sample, text: str) -> Answer:
        if kind != "masked" and MASK in sample.prompt:
            raise LasertriError(
                f"{sample.source}, prompt: expected a masked language model for {MASK}, got one of kind {kind}; "
                "write the prompt up to the answer"
            )
        made = how.answer(sample, text)
        if not made.row or not made.tokens:
            raise LasertriError(f"{sample.source}: expected tokens for prompt and answer, got none for {text!r}")
        check(max(len(made.row), len(made.decoder)), sample)
        return made

    def prompt(sample: Sample) -> tuple[int, ...]:
        tokens = how.prompt(sample)
        check(len(tokens) + (sample.window - 1 if kind == "causal" else 0), sample)
        check(sample.window, sample)
        return tokens

    return Asking(answer, prompt)


def _following(tokenizer: PreTrainedTokenizerBase, delimiter: str, chat: bool) -> Asking:
    """A causal model's answer begins with the first token that it changes, even where it merges with the prompt's."""
    closed = tokenizer("a")["input_ids"][-1:] == [tokenizer.eos_token_id]

    def tokens(text: str) -> list[int]:
        # a chat template writes its special tokens itself, and a text that begins with BOS needs no second one
        special = not chat and not (tokenizer.bos_token and text.startswith(tokenizer.bos_token))
        ids = list(tokenizer(text, add_special_tokens=special)["input_ids"])
        return ids[:-1] if closed and special else ids  # an answer does not end where the tokenizer closes a text

    def texts(sample: Sample, text: str) -> tuple[str, str]:
        return (_turn(sample, tokenizer), text) if chat else _texts(sample, text, delimiter)

    def answer(sample: Sample, text: str) -> Answer:
        prompt, following = texts(sample, text)
        before, whole = tokens(prompt), tokens(prompt + following)
        if sample.delimiter is not None:  # lm-evaluation-harness puts the prompt's own tokens in their place
            whole[: len(before)] = before
        start = next((i for i, (a, b) in enumerate(zip(before, whole, strict=False)) if a != b), len(before))
        return Answer(tuple(whole[:-1]) if start else (), tuple(whole[start:]), start - 1)

    def prompt(sample: Sample) -> tuple[int, ...]:
        """Without white space at its end, which may be part of the first token that the model writes."""
        return tuple(tokens(texts(sample, "")[0]))

    return Asking(answer, prompt)


def _masked(tokenizer: PreTrainedTokenizerBase, delimiter: str) -> Asking:
    """A masked model's answer stands for `MASK`, or at the prompt's end; its tokens are masked at once, as by LASER."""
    symbol, mask = tokenizer.mask_token, tokenizer.mask_token_id
    if mask is None or not tokenizer.is_fast:
        raise LasertriError(
            "expected a fast tokenizer with a mask token for a masked language model, "
            f"got {type(tokenizer).__name__}; pass the model's own"
        )

    def answer(sample: Sample, text: str) -> Answer:
        before, *after = sample.prompt.replace(symbol, MASK).split(MASK)
        if len(after) > 1:
            raise LasertriError(f"{sample.source}, prompt: expected at most one {MASK}, got {len(after)}")
        if not after:
            prompt, following = _texts(sample, text, delimiter)
            before = prompt + following.removesuffix(text)
        text = text.lstrip() if before[-1:].isspace() else text
        begin, end = len(before) - before.endswith(" "), len(before) + len(text)  # a space is of the word's first token
        whole = tokenizer(before + text + "".join(after), return_offsets_mapping=True)
        own = [i for i, (a, b) in enumerate(whole["offset_mapping"]) if a < end and b > begin]
        start, stop = (own[0], own[-1] + 1) if own else (0, 0)
        ids = whole["input_ids"]
        return Answer((*ids[:start], *[mask] * (stop - start), *ids[stop:]), tuple(ids[start:stop]), start)

    def prompt(sample: Sample) -> tuple[int, ...]:
        one = answer(sample, symbol)
        return (*one.row[: one.start], *[mask] * sample.window, *one.row[one.start + len(one.tokens) :])

    return Asking(answer, prompt)


def _decoded(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Asking:
    """An encoder-decoder's answer is its decoder's text, without what the tokenizer opens and closes texts with."""
    first = decoder_start(model)

    def answer(sample: Sample, text: str) -> Answer:
        target = tokenizer(text_target=text, return_special_tokens_mask=True)
        own = [i for i, special in enumerate(target["special_tokens_mask"]) if not special]
        start, end = (own[0], own[-1] + 1) if own else (0, 0)
        tokens = target["input_ids"][:end]
        return Answer(prompt(sample), tuple(tokens[start:]), start, (first, *tokens[:-1]))

    def prompt(sample: Sample) -> tuple[int, ...]:
        return tuple(tokenizer(sample.prompt)["input_ids"])

    return Asking(answer, prompt)


def decoder_start(model: PreTrainedModel) -> int:
    """The token that an encoder-decoder's decoder starts from.

    Raises:
        LasertriError: its configuration does not say.
    """
    first: int | None = getattr(model.config, "decoder_start_token_id", None)
    if first is None:
        raise LasertriError(
            "expected decoder_start_token_id in the encoder-decoder's configuration, which its decoder starts from; "
            "set it in config.json or on model.config"
        )
    return first


def _texts(sample: Sample, text: str, delimiter: str) -> tuple[str, str]:
    """The prompt without white space at its end, and the answer after what stands between them."""
    prompt = sample.prompt.rstrip()
    space = sample.prompt[len(prompt) :]
    if sample.delimiter is not None:
        return prompt, space + sample.delimiter + text
    return prompt, (space or ("" if text[:1].isspace() else delimiter)) + text


def _turn(sample: Sample, tokenizer: PreTrainedTokenizerBase) -> str:
    """The chat up to where the model's turn is open."""
    if sample.delimiter is not None:
        raise LasertriError(
            f"{sample.source}: expected a sample without a delimiter of its own where chat=True, got "
            f"{sample.delimiter!r}; lm_eval_samples(chat=tokenizer) writes lm_eval's prompts for a chat"
        )
    return chat_text(tokenizer, [{"role": "user", "content": sample.prompt}])
