"""Samples as token batches. The loss and the measure read the same tokens at the same positions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
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
        row, position, token, entry: `[N]`; `token[n]` is predicted at `(row[n], position[n])`, and is the token
            `entry[n]` of the samples' `tokens`.
    """

    input_ids: Tensor
    attention_mask: Tensor
    row: Tensor
    position: Tensor
    token: Tensor
    entry: Tensor

    def read(self, model: nn.Module) -> tuple[Tensor, Tensor]:
        """Log-probability of every answer token, FP32 `[N]`, and the most probable token in its place `[N]`."""
        with _head_reads(model, self.row, self.position) as selected:
            logits = model(input_ids=self.input_ids, attention_mask=self.attention_mask, use_cache=False).logits
        if not selected:
            logits = logits[self.row.to(logits.device), self.position.to(logits.device)]
        log_probs = logits.reshape(len(self.token), -1).float().log_softmax(-1)
        return log_probs.gather(-1, self.token.to(logits.device).unsqueeze(-1)).squeeze(-1), log_probs.argmax(-1)

    def copies(self, count: int) -> Batch:
        """The same rows `count` times, one set after the other."""
        shift = len(self.input_ids) * torch.arange(count, device=self.row.device).repeat_interleave(len(self.row))
        return Batch(
            self.input_ids.repeat(count, 1),
            self.attention_mask.repeat(count, 1),
            self.row.repeat(count) + shift,
            *(t.repeat(count) for t in (self.position, self.token, self.entry)),
        )

    def places(self) -> tuple[Batch, Tensor, Tensor]:
        """Every place `(row, position)` that is read as a row of its own, of length 1; and these rows and positions."""
        width = self.input_ids.shape[1]
        flat, place = (self.row * width + self.position).unique(return_inverse=True)
        row, position = flat // width, flat % width
        ids = self.input_ids[row, position].unsqueeze(-1)
        batch = Batch(ids, torch.ones_like(ids), place, torch.zeros_like(place), self.token, self.entry)
        return batch, row, position


@contextmanager
def _head_reads(model: nn.Module, row: Tensor, position: Tensor) -> Iterator[list[bool]]:
    """Within, the output head is given the hidden states of these places alone, as `[1, N, d]`; yields if it was."""
    selected: list[bool] = []

    def select(head: nn.Module, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        hidden = arguments[0]
        if hidden.dim() != 3:
            return None
        selected.append(True)
        return (hidden[row.to(hidden.device), position.to(hidden.device)].unsqueeze(0), *arguments[1:])

    head = getattr(model, "get_output_embeddings", lambda: None)()
    handle = None if head is None else head.register_forward_pre_hook(select)
    try:
        yield selected
    finally:
        if handle is not None:
            handle.remove()


class EncodedSamples:
    """Samples tokenised once, and the batches that read all their answers or only the right ones.

    Args:
        delimiter: stands between prompt and answer, unless one of them has white space there.

    Attributes:
        answers: of every sample, in order; `starts` is the index of its first among the answers of all samples.
        tokens: `[E]`, of all answers one after the other; `token_starts` is where each answer begins.

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
        self.samples, self.batch_size, self.device = list(samples), batch_size, model.device
        context = context_length(model)
        closed = tokenizer("a")["input_ids"][-1:] == [tokenizer.eos_token_id]

        def tokens(text: str) -> list[int]:
            ids = list(tokenizer(text)["input_ids"])
            return ids[:-1] if closed else ids  # an answer does not end where the tokenizer closes a text

        self.answers = [
            [_encode(tokens, sample, text, delimiter, context) for text in sample.answers] for sample in self.samples
        ]
        self._flat = [answer for answers in self.answers for answer in answers]
        self.tokens = np.array([token for answer in self._flat for token in answer.tokens])
        self.starts = np.cumsum([0, *map(len, self.answers)])[:-1]
        self.token_starts = np.cumsum([0, *(len(answer.tokens) for answer in self._flat)])[:-1]

    def __len__(self) -> int:
        return len(self.samples)

    @property
    def groups(self) -> list[str]:
        """See `group_names`."""
        return group_names(self.samples)

    @property
    def longest(self) -> int:
        """Tokens of the longest row."""
        return max(len(answer.row) for answer in self._flat)

    def batches(self, samples: Iterable[int] | None = None, *, tokens: int | None = None) -> list[Batch]:
        """Batches by length that read every answer of these samples (of all).

        Args:
            tokens: most tokens of a batch, padding included; by default a batch has `batch_size` rows.
        """
        chosen = range(len(self)) if samples is None else samples
        wanted = [self.starts[i] + a for i in chosen for a in range(len(self.answers[i]))]
        return self._batches(wanted, tokens)

    def gold_batches(self) -> list[Batch]:
        """Batches by length that read the right answer of every sample."""
        return self._batches([start + sample.gold for start, sample in zip(self.starts, self.samples, strict=True)])

    def _batches(self, answers: Sequence[int], tokens: int | None = None) -> list[Batch]:
        """Batches of the distinct rows: answers of one token share the row of their prompt."""
        readers: dict[tuple[int, ...], list[int]] = {}
        for answer in answers:
            readers.setdefault(self._flat[answer].row, []).append(answer)
        batches: list[list[tuple[int, ...]]] = []
        for row in sorted(readers, key=len):
            full = self.batch_size if tokens is None else max(1, tokens // len(row))
            if not batches or len(batches[-1]) >= full:
                batches.append([])
            batches[-1].append(row)
        return [self._batch(rows, readers) for rows in batches]

    def _batch(self, rows: Sequence[tuple[int, ...]], readers: dict[tuple[int, ...], list[int]]) -> Batch:
        longest = max(map(len, rows))
        entries = [
            (r, len(row) - len(self._flat[a].tokens) + t, token, self.token_starts[a] + t)
            for r, row in enumerate(rows)
            for a in readers[row]
            for t, token in enumerate(self._flat[a].tokens)
        ]
        return Batch(
            torch.tensor([[*row, *[0] * (longest - len(row))] for row in rows], device=self.device),
            torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows], device=self.device),
            *torch.tensor(entries, device=self.device).unbind(-1),
        )


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
