"""A conversation as the text that the tokenizer's chat template makes of it."""

from __future__ import annotations

from collections.abc import Sequence

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from lasertri.errors import LasertriError

Message = dict[str, str]


def chat_text(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], *, add_generation_prompt: bool = True
) -> str:
    """The text up to where the model's answer begins.

    A template that refuses a system message is given the conversation without it, as lm-evaluation-harness does.

    Args:
        messages: with `role` and `content` each.
        add_generation_prompt: open the model's turn; otherwise the last message is the model's own, to be continued.

    Raises:
        LasertriError: the tokenizer has no chat template, or its template refuses the conversation.
    """
    if not tokenizer.chat_template:
        raise LasertriError(
            f"expected a tokenizer with a chat template, {tokenizer.name_or_path or 'this one'} has none; "
            "leave the chat option out, or set tokenizer.chat_template"
        )
    try:
        text = tokenizer.apply_chat_template(
            list(messages),
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
        )
    except TemplateError as error:
        rest = [message for message in messages if message["role"] != "system"]
        if len(rest) == len(messages):
            raise LasertriError(f"expected a chat template that takes a user's message: {error}") from error
        return chat_text(tokenizer, rest, add_generation_prompt=add_generation_prompt)
    return str(text)
