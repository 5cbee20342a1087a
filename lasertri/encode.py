"""Samples as token batches. The loss and the measure read the same tokens at the same positions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lasertri.errors import LasertriError
from lasertri.models import context_length
from lasertri.tasks import Sample, group_names


@dataclass(frozen=True)
class Answer:
    """The tokens of one answer and the model input whose last `len(tokens)` positions predict them."""

    row: tuple[int, ...]
    tokens: tuple[int, ...]


@dataclass(frozen=True)
class Batch:
    """Rows of similar length, padded on the right, with one entry for every answer token to read.

    Attributes:
        input_ids, attention_mask: `[B, T]`.
        row, position, token, answer: `[N]`; token n of answer `answer[n]` is predicted at `(row[n], position[n])`.
    """

    input_ids: Tensor
    attention_mask: Tensor
    row: Tensor
    position: Tensor
    token: Tensor
    answer: Tensor

    def read(self, model: nn.Module) -> tuple[Tensor, Tensor]:
        """Log-probability of every answer token, FP32 `[N]`, and the most probable token in its place `[N]`."""
        logits = model(input_ids=self.input_ids, attention_mask=self.attention_mask, use_cache=False).logits
        log_probs = logits[self.row, self.position].float().log_softmax(-1)
        return log_probs.gather(-1, self.token.unsqueeze(-1)).squeeze(-1), log_probs.argmax(-1)


class EncodedSamples:
    """Samples tokenised once, and the batches that read all their answers or only the right ones.

    Args:
        delimiter: stands between prompt and answer, unless one of them has white space there.

    Raises:
        LasertriError: an answer without tokens, or a sample longer than the model's context.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        *,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        delimiter: str = " ",
        batch_size: int = 16,
    ) -> None:
        self.samples, context = list(samples), context_length(model)
        closed = tokenizer("a")["input_ids"][-1:] == [tokenizer.eos_token_id]

        def tokens(text: str) -> list[int]:
            ids = list(tokenizer(text)["input_ids"])
            return ids[:-1] if closed else ids  # an answer does not end where the tokenizer closes a text

        self.answers = [
            [_encode(tokens, sample, text, delimiter, context) for text in sample.answers] for sample in self.samples
        ]
        everything = [answer for answers in self.answers for answer in answers]
        right = [answers[s.gold] for s, answers in zip(self.samples, self.answers, strict=True)]
        self.batches = _batches(everything, batch_size, model.device)
        self.gold_batches = _batches(right, batch_size, model.device)

    def __len__(self) -> int:
        return len(self.samples)

    @property
    def groups(self) -> list[str]:
        """See `group_names`."""
        return group_names(self.samples)


def _encode(
    tokenize: Callable[[str], list[int]], sample: Sample, text: str, delimiter: str, context: int | None
) -> Answer:
    """The answer begins with the first token that it changes, even where it merges with the prompt's last."""
    prompt = sample.prompt.rstrip()
    gap = sample.prompt[len(prompt) :] or ("" if text[:1].isspace() else delimiter)
    before, whole = tokenize(prompt), tokenize(prompt + gap + text)
    start = next((i for i, (a, b) in enumerate(zip(before, whole, strict=False)) if a != b), len(before))
    tokens = whole[start:]
    if not start or not tokens:
        raise LasertriError(f"{sample.source}: expected tokens for prompt and answer, came none for {text!r}")
    if context is not None and len(whole) - 1 > context:
        raise LasertriError(
            f"{sample.source}: expected at most {context:,} tokens, the model's context, came {len(whole) - 1:,}; "
            "shorten the prompt or leave the row out"
        )
    return Answer(tuple(whole[:-1]), tuple(tokens))


def _batches(answers: Sequence[Answer], size: int, device: torch.device) -> list[Batch]:
    """Batches of the distinct rows, by length: answers of one token share the row of their prompt."""
    readers: dict[tuple[int, ...], list[int]] = {}
    for index, answer in enumerate(answers):
        readers.setdefault(answer.row, []).append(index)
    rows = sorted(readers, key=len)
    return [_batch(rows[i : i + size], readers, answers, device) for i in range(0, len(rows), size)]


def _batch(
    rows: Sequence[tuple[int, ...]],
    readers: dict[tuple[int, ...], list[int]],
    answers: Sequence[Answer],
    device: torch.device,
) -> Batch:
    longest = max(map(len, rows))
    entries = [
        (r, len(row) - len(answers[a].tokens) + t, token, a)
        for r, row in enumerate(rows)
        for a in readers[row]
        for t, token in enumerate(answers[a].tokens)
    ]
    return Batch(
        torch.tensor([[*row, *[0] * (longest - len(row))] for row in rows], device=device),
        torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows], device=device),
        *torch.tensor(entries, device=device).unbind(-1),
    )
