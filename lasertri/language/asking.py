"""Where a model is asked for an answer: after the prompt, in place of masks, or in a decoder."""

from __future__ import annotations

import itertools
import sys
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lasertri.data.chat import chat_text
from lasertri.data.sample import MASK, Sample
from lasertri.errors import LasertriError
from lasertri.language.encoding import alike
from lasertri.model.architectures import output_head
from lasertri.model.loading import context_length, model_kind
from lasertri.support.shown import shown

SHOWN = 300  # characters of a prompt, its last
QUOTES = "\"'`"  # that open as well as close


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
class Asked:
    """How a sample is asked, as texts: its right answer stands after prompt and border, and before `after`."""

    prompt: str
    border: str
    answer: str
    after: str = ""

    def __str__(self) -> str:
        shortened = self.prompt if len(self.prompt) <= SHOWN else f"…{self.prompt[-SHOWN:]}"
        after = f", then {self.after!r}" if self.after else ""
        return f"prompt {shortened!r}, border {self.border!r}, answer {shown(self.answer)}{after}"


@dataclass(frozen=True)
class Asking:
    """How one model is asked.

    The answers of a sample are read over the same stretch of text: where the tokenizer merges one of them with the
    prompt's end into other tokens, all are read from the first token on that any of them changes.

    Attributes:
        answers: a sample -> an `Answer` for each of its answers.
        prompt: a sample -> the tokens that a text is written after; of a masked model those around `window` masks.
        asked: a sample -> the texts that all this is made of.
    """

    answers: Callable[[Sample], list[Answer]]
    prompt: Callable[[Sample], tuple[int, ...]]
    asked: Callable[[Sample], Asked]


def asking(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, delimiter: str, chat: bool = False) -> Asking:
    """How this model is asked, with every length and every token checked.

    Args:
        delimiter: stands between prompt and answer, unless one of them has white space there or the sample its own; a
            space does not after an opening quotation mark or bracket.
        chat: the prompt is the user's turn in the tokenizer's chat template, and the answer the model's, as it is.

    Raises:
        LasertriError: the tokenizer has no mask for a masked model, the decoder's first token is not known, or `chat`
            with another than a causal model. What is returned raises it for an answer without tokens, with several
            places, or longer than the model's context, for choices of the same tokens, for tokens that the model does
            not have, and with `chat` where there is no template or a sample has a delimiter of its own.
    """
    kind, context = model_kind(model), context_length(model)
    known, readable = vocabularies(model)
    if not isinstance(tokenizer.model_max_length, int | float):
        raise LasertriError(
            "expected a number as model_max_length of the tokenizer (tokenizer_config.json), "
            f"got {shown(tokenizer.model_max_length)}; correct it or leave it out"
        )
    if kind == "causal":
        how = _following(tokenizer, delimiter, chat)
    elif chat:
        raise LasertriError(f"expected a causal language model for a chat, got one of kind {kind}")
    else:
        how = _masked(tokenizer, delimiter) if kind == "masked" else _decoded(model, tokenizer)

    def check_length(length: int, sample: Sample) -> None:
        if context is not None and length > context:
            raise LasertriError(
                f"{sample.source}: expected at most {context:,} tokens, the model's context, got {length:,}; "
                "shorten the prompt or leave the row out"
            )

    def check_known(tokens: Sequence[int], count: int, sample: Sample) -> None:
        unknown: Any = next((token for token in tokens if not isinstance(token, int) or not 0 <= token < count), 0)
        if unknown != 0:
            text = shown(unknown)
            if isinstance(unknown, int) and 0 <= unknown < len(tokenizer):
                text += f" ({shown(tokenizer.convert_ids_to_tokens(unknown))})"
            raise LasertriError(
                f"{sample.source}: expected tokens below {count:,}, those that the model has, got {text}; use the "
                "model's own tokenizer, or model.resize_token_embeddings(len(tokenizer)) and train the new ones"
            )

    def answers(sample: Sample) -> list[Answer]:
        if kind != "masked" and MASK in sample.prompt:
            raise LasertriError(
                f"{sample.source}, prompt: expected a masked language model for {MASK}, got one of kind {kind}; "
                "write the prompt up to the answer"
            )
        found, texts = how.answers(sample), dict[Answer, str]()
        for made, text in zip(found, sample.answers, strict=True):
            if not made.row or not made.tokens:
                raise LasertriError(
                    f"{sample.source}: expected tokens for prompt and answer, got none for {shown(text)}, or none "
                    "before those that it merges with the prompt's; write more before it"
                )
            check_known((*made.row, *made.decoder), known, sample)
            check_known(made.tokens, readable, sample)
            check_length(max(len(made.row), len(made.decoder)), sample)
            if made in texts:
                raise LasertriError(
                    f"{sample.source}, choices: expected choices of different tokens, got {shown(texts[made])} and "
                    f"{shown(text)}, which are the same to the tokenizer; write them in other words"
                )
            texts[made] = text
        return found

    def prompt(sample: Sample) -> tuple[int, ...]:
        tokens = how.prompt(sample)
        check_known(tokens, known, sample)
        check_length(len(tokens) + (sample.window - 1 if kind == "causal" else 0), sample)
        check_length(sample.window, sample)
        return tokens

    return Asking(answers, prompt, how.asked)


def _following(tokenizer: PreTrainedTokenizerBase, delimiter: str, chat: bool) -> Asking:
    """A causal model's answers begin with the first token that one of them changes, be it merged with the prompt's."""
    opening = [] if chat else _opening(tokenizer)  # a chat template writes its special tokens itself
    written = "".join(tokenizer.convert_ids_to_tokens(opening))

    def tokens(text: str) -> list[int]:
        ids = list(tokenizer(text, add_special_tokens=False)["input_ids"])
        # a text that begins with BOS needs no other; an unknown token's id may be the same
        return ids if text.startswith(written) and ids[: len(opening)] == opening else [*opening, *ids]

    def parts(sample: Sample, text: str) -> tuple[str, str]:
        return (_turn(sample, tokenizer), text) if chat else _texts(sample, text, delimiter)

    def answers(sample: Sample) -> list[Answer]:
        before = tokens(parts(sample, "")[0])
        wholes = [tokens("".join(parts(sample, text))) for text in sample.answers]
        if sample.as_lm_eval:  # which puts the prompt's own tokens in their place
            wholes = [[*before, *whole[len(before) :]] for whole in wholes]
        start = alike([before, *wholes])
        return [
            Answer(tuple(whole[:-1]), tuple(whole[start:]), start - 1)
            if start and alike([before, whole]) < len(whole)
            else Answer((), (), 0)
            for whole in wholes
        ]

    def prompt(sample: Sample) -> tuple[int, ...]:
        """Without white space at its end, which may be part of the first token that the model writes."""
        return tuple(tokens(parts(sample, "")[0]))

    def asked(sample: Sample) -> Asked:
        text = sample.answers[sample.gold]
        before, following = parts(sample, text)
        return Asked(before, following.removesuffix(text), text)

    return Asking(answers, prompt, asked)


def _masked(tokenizer: PreTrainedTokenizerBase, delimiter: str) -> Asking:
    """A masked model's answer stands for `MASK`, or at the prompt's end; its tokens are masked at once, as by LASER."""
    symbol, mask = tokenizer.mask_token, tokenizer.mask_token_id
    if mask is None or not tokenizer.is_fast:
        raise LasertriError(
            "expected a fast tokenizer with a mask token for a masked language model, "
            f"got {type(tokenizer).__name__}; pass the model's own"
        )

    def parts(sample: Sample, text: str) -> Asked:
        before, *after = sample.prompt.replace(symbol, MASK).split(MASK)
        if len(after) > 1:
            raise LasertriError(f"{sample.source}, prompt: expected at most one {MASK}, got {len(after)}")
        prompt, following = (before, text) if after else _texts(sample, text, delimiter)
        border = following.removesuffix(text)
        return Asked(prompt, border, text.lstrip() if (prompt + border)[-1:].isspace() else text, "".join(after))

    def placed(sample: Sample, text: str) -> tuple[list[int], int, int]:
        """The tokens of prompt and answer, how many of them come before the answer's and how many after."""
        made = parts(sample, text)
        before, text = made.prompt + made.border, made.answer
        begin, end = len(before) - before.endswith(" "), len(before) + len(text)  # a space is of the word's first token
        whole = tokenizer(before + text + made.after, return_offsets_mapping=True)
        ids = list(whole["input_ids"])
        own = [i for i, (a, b) in enumerate(whole["offset_mapping"]) if a < end and b > begin]
        return ids, *((own[0], len(ids) - own[-1] - 1) if own else (0, len(ids)))

    def masked(rows: Sequence[tuple[list[int], int, int]]) -> list[Answer]:
        wholes, befores, afters = zip(*rows, strict=True)
        start = min(*befores, alike(wholes))
        after = min(*afters, alike([whole[::-1] for whole in wholes]))
        return [
            Answer((*ids[:start], *[mask] * (stop - start), *ids[stop:]), tuple(ids[start:stop]), start)
            if own < len(ids)
            else Answer((), (), 0)
            for ids, own, stop in ((ids, own, len(ids) - after) for ids, _, own in rows)
        ]

    def answers(sample: Sample) -> list[Answer]:
        return masked([placed(sample, text) for text in sample.answers])

    def prompt(sample: Sample) -> tuple[int, ...]:
        [one] = masked([placed(sample, symbol)])
        return (*one.row[: one.start], *[mask] * sample.window, *one.row[one.start + len(one.tokens) :])

    def asked(sample: Sample) -> Asked:
        return parts(sample, sample.answers[sample.gold])

    return Asking(answers, prompt, asked)


def _decoded(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Asking:
    """An encoder-decoder's answer is its decoder's text, without what the tokenizer opens and closes texts with."""
    first, opening = decoder_start(model), _opening(tokenizer, "text_target")

    def answer(sample: Sample, text: str) -> Answer:
        tokens = (*opening, *tokenizer(text_target=text, add_special_tokens=False)["input_ids"])
        return Answer(prompt(sample), tokens[len(opening) :], len(opening), (first, *tokens[:-1]))

    def answers(sample: Sample) -> list[Answer]:
        return [answer(sample, text) for text in sample.answers]

    def prompt(sample: Sample) -> tuple[int, ...]:
        return tuple(tokenizer(sample.prompt)["input_ids"])

    def asked(sample: Sample) -> Asked:
        return Asked(sample.prompt, "", sample.answers[sample.gold])

    return Asking(answers, prompt, asked)


def _opening(tokenizer: PreTrainedTokenizerBase, argument: str = "text") -> list[int]:
    """The tokens that a tokenizer puts before every text of its own accord, found by what it puts around one."""
    special = set(tokenizer.all_special_tokens)
    for text in itertools.chain(("a",), (token for token in tokenizer.get_vocab() if token not in special)):
        probe: dict[str, Any] = {argument: text}
        alone = list(tokenizer(**probe, add_special_tokens=False)["input_ids"])
        if alone:
            whole = list(tokenizer(**probe)["input_ids"])
            places = range(len(whole) - len(alone) + 1)
            return whole[: next((i for i in places if whole[i : i + len(alone)] == alone), 0)]
    return []


def vocabularies(model: PreTrainedModel) -> tuple[int, int]:
    """How many tokens the model reads, and for how many it gives a probability."""
    embeddings: Any = getattr(model, "get_input_embeddings", lambda: None)()
    head = output_head(model)
    known = sys.maxsize if embeddings is None else int(embeddings.weight.shape[0])
    return known, head.out_features if isinstance(head, nn.Linear) else known


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
    if delimiter == " " and _opens(prompt):
        delimiter = ""
    return prompt, (space or ("" if text[:1].isspace() else delimiter)) + text


def _opens(prompt: str) -> bool:
    """Whether a text ends in a bracket or quotation mark that opens: one not after a word or what ends one."""
    last = prompt[-1:]
    if not last or unicodedata.category(last) == "Ps":
        return bool(last)
    if last not in QUOTES and unicodedata.category(last) != "Pi":
        return False
    before = prompt.rstrip(last)
    return not before or before[-1].isspace() or before[-1] in "=:-–—/" or _opens(before)


def _turn(sample: Sample, tokenizer: PreTrainedTokenizerBase) -> str:
    """The chat up to where the model's turn is open."""
    if sample.delimiter is not None:
        raise LasertriError(
            f"{sample.source}: expected a sample without a delimiter of its own where chat=True, got "
            f"{shown(sample.delimiter)}; leave it out, or let lm_eval_samples(chat=tokenizer) write lm_eval's prompts"
        )
    try:
        return chat_text(tokenizer, [{"role": "user", "content": sample.prompt}])
    except LasertriError as error:
        raise LasertriError(f"{sample.source}: {error}") from error
