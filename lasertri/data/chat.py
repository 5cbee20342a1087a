"""A conversation as the text that the tokenizer's chat template makes of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from lasertri.errors import LasertriError
from lasertri.support.shown import reason, shown

Message = dict[str, str]
# what a template, which is a program, may end with
FAILURES = (TemplateError, ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)
PARTS = ("'type': 'text'", '"type": "text"')  # in a text: of a template that takes content to be text


def chat_text(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], *, add_generation_prompt: bool = True
) -> str:
    """The text up to where the model's answer begins.

    A template that leaves a message's text out is given its content as a list of parts, as those of models for images
    expect it. One that refuses a system message is given the conversation without it, as lm-evaluation-harness does.

    Args:
        messages: with `role` and `content` each.
        add_generation_prompt: open the model's turn; otherwise the last message is the model's own, to be continued.

    Raises:
        LasertriError: the tokenizer has no chat template, or its template refuses the conversation or loses a message.
    """
    if not tokenizer.chat_template:
        raise LasertriError(
            f"expected a tokenizer with a chat template, {tokenizer.name_or_path or 'this one'} has none; "
            "leave the chat option out, or set tokenizer.chat_template"
        )
    rest = [message for message in messages if message["role"] != "system"]
    obstacle = ""
    for chosen in (messages, rest) if len(rest) < len(messages) else (messages,):
        for content in (_as_text, _as_parts):
            try:
                text = tokenizer.apply_chat_template(
                    [message | {"content": content(message)} for message in chosen],
                    tokenize=False,
                    add_generation_prompt=add_generation_prompt,
                    continue_final_message=not add_generation_prompt,
                )
            except FAILURES as error:
                obstacle = obstacle or f"that takes a user's message: {reason(error)}"
                continue
            lost = _lost(chosen, str(text))
            if lost is None:
                return str(text)
            obstacle = obstacle or f"that writes a message as it is, and cannot find {shown(lost)} in what it made"
    raise LasertriError(f"expected a chat template {obstacle}")


def _as_text(message: Message) -> Any:
    return message["content"]


def _as_parts(message: Message) -> Any:
    return [{"type": "text", "text": message["content"]}]


def _lost(messages: Sequence[Message], text: str) -> str | None:
    """A message that is not in a text, outer white space aside."""
    told = [message["content"] for message in messages if message["role"] != "system"]
    raw = any(mark in text and not any(mark in each for each in told) for mark in PARTS)
    return next((each for each in told if raw or each.strip() not in text), None)
