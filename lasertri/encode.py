"""Samples as token batches. The loss and the measure read the same tokens at the same positions."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lasertri.answers import asking
from lasertri.architectures import branching_length, output_head
from lasertri.evaluate import Readings
from lasertri.models import model_kind
from lasertri.tasks import Sample, group_names


@dataclass(frozen=True)
class Row:
    """Tokens to run: a prompt, then branches that each go on from it and do not see each other.

    Attributes:
        shared: tokens before the branches; all of them where there are none.
        branches: tokens of every branch.
        decoder: tokens of an encoder-decoder's decoder, where those before are its encoder's.
    """

    tokens: tuple[int, ...]
    shared: int
    branches: tuple[int, ...] = ()
    decoder: tuple[int, ...] = ()

    @classmethod
    def of(cls, sequences: Sequence[tuple[int, ...]], decoder: tuple[int, ...] = ()) -> Row:
        """One row for sequences that begin alike."""
        if len(sequences) == 1:
            return cls(sequences[0], len(sequences[0]), decoder=decoder)
        columns = enumerate(zip(*sequences, strict=False))
        shared = next((i for i, column in columns if len(set(column)) > 1), min(map(len, sequences)))
        ends = [sequence[shared:] for sequence in sequences]
        return cls((*sequences[0][:shared], *itertools.chain(*ends)), shared, tuple(map(len, ends)))

    @property
    def length(self) -> int:
        """Tokens that are run."""
        return len(self.tokens) + len(self.decoder)

    def places(self, sequence: int) -> list[int]:
        """Where the tokens of one of the sequences stand, or those of the decoder."""
        if self.decoder:
            return list(range(len(self.decoder)))
        start = self.shared + sum(self.branches[:sequence])
        return [*range(self.shared), *range(start, start + sum(self.branches[sequence : sequence + 1]))]

    @property
    def positions(self) -> list[int]:
        """Place of every token in its own sequence."""
        return [*range(self.shared), *(self.shared + i for length in self.branches for i in range(length))]

    def sees(self) -> Tensor:
        """Which token (row) sees which (column), `[T, T]` bool."""
        branch = torch.tensor([0] * self.shared + [j for j, n in enumerate(self.branches, 1) for _ in range(n)])
        alike = (branch.unsqueeze(1) == branch) | (branch == 0)
        return alike.tril()


@dataclass(frozen=True)
class Batch:
    """Rows of similar length, padded on the right, with one entry for every answer token to read.

    Attributes:
        input_ids: `[B, T]`.
        attention_mask: `[B, T]`, or where rows have branches which token sees which, `[B, 1, T, T]` bool.
        position_ids: `[B, T]` where rows have branches.
        decoder_input_ids: `[B, D]` of an encoder-decoder.
        row, position, token, entry: `[N]`; `token[n]` is predicted at `(row[n], position[n])`, of the decoder if there
            is one, and is the token `entry[n]` of the samples' `tokens`.
    """

    input_ids: Tensor
    attention_mask: Tensor
    row: Tensor
    position: Tensor
    token: Tensor
    entry: Tensor
    position_ids: Tensor | None = None
    decoder_input_ids: Tensor | None = None

    @property
    def size(self) -> int:
        """Tokens that are run, padding included."""
        return self.input_ids.numel() + (0 if self.decoder_input_ids is None else self.decoder_input_ids.numel())

    def read(self, model: nn.Module) -> tuple[Tensor, Tensor]:
        """Log-probability of every answer token, FP32 `[N]`, and the most probable token in its place `[N]`."""
        inputs: dict[str, Any] = {"input_ids": self.input_ids, "attention_mask": self.attention_mask}
        if self.position_ids is not None:
            dtype = next(model.parameters()).dtype
            hidden = torch.zeros_like(self.attention_mask, dtype=dtype).masked_fill_(
                ~self.attention_mask, torch.finfo(dtype).min
            )
            inputs |= {"attention_mask": hidden, "position_ids": self.position_ids}
        if self.decoder_input_ids is not None:
            inputs |= {"decoder_input_ids": self.decoder_input_ids}
        if getattr(getattr(model, "config", None), "output_router_logits", False):
            inputs |= {"output_router_logits": False}  # a loss of its own, which branches do not fit
        row, position, place = self.places
        with _head_reads(model, row, position) as selected:
            logits = model(**inputs, use_cache=False).logits
        if not selected:
            logits = logits[row.to(logits.device), position.to(logits.device)]
        log_probs = logits.reshape(len(row), -1).float().log_softmax(-1)
        place = place.to(logits.device)
        return log_probs[place, self.token.to(logits.device)], log_probs.argmax(-1)[place]

    def loss(self, model: nn.Module) -> Tensor:
        """Negative log-likelihood of the answer tokens in nats, summed."""
        return -self.read(model)[0].sum()

    def copies(self, count: int) -> Batch:
        """The same rows `count` times, one set after the other."""
        shift = len(self.input_ids) * torch.arange(count, device=self.row.device).repeat_interleave(len(self.row))
        return Batch(
            self.input_ids.repeat(count, 1),
            self.attention_mask.repeat(count, *[1] * (self.attention_mask.dim() - 1)),
            self.row.repeat(count) + shift,
            self.position.repeat(count),
            self.token.repeat(count),
            self.entry.repeat(count),
            None if self.position_ids is None else self.position_ids.repeat(count, 1),
            None if self.decoder_input_ids is None else self.decoder_input_ids.repeat(count, 1),
        )

    @functools.cached_property
    def places(self) -> tuple[Tensor, Tensor, Tensor]:
        """Rows and positions of all that is read, each once, `[P]`; and which of them every entry is read at, `[N]`."""
        width = (self.input_ids if self.decoder_input_ids is None else self.decoder_input_ids).shape[1]
        flat, place = (self.row * width + self.position).unique(return_inverse=True)
        return flat // width, flat % width, place

    def at_places(self) -> Batch:
        """Every place that is read as a row of its own, of length 1."""
        row, position, place = self.places
        ids = self.input_ids[row, position].unsqueeze(-1)
        return Batch(ids, torch.ones_like(ids), place, torch.zeros_like(place), self.token, self.entry)


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

    head = output_head(model)
    handle = None if head is None else head.register_forward_pre_hook(select)
    try:
        yield selected
    finally:
        if handle is not None:
            handle.remove()


class EncodedSamples:
    """Samples tokenised once, and the batches that read all their answers or only the right ones.

    Args:
        delimiter, chat: see `answers.asking`.

    Attributes:
        answers: of every sample, in order; `starts` is the index of its first among the answers of all samples.
        tokens: `[E]`, of all answers one after the other; `token_starts` is where each answer begins.
        owner, characters: `[A]`, of every answer its sample and its length as text.
        gold, free: `[S]`, of every sample the index of its right answer among all, and whether it is a completion.
        prompts: the tokens that a text is written after, by the indices of those samples that ask for one.
        work: tokens that are read, and those that are written.
        pad: token that pads rows.

    Raises:
        LasertriError: see `answers.asking`.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        *,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        delimiter: str = " ",
        chat: bool = False,
        batch_size: int = 16,
    ) -> None:
        self.samples, self.batch_size, self.device = list(samples), batch_size, model.device
        self.tokenizer = tokenizer
        self._branching = branching_length(model)
        # what is padded is masked; but RoBERTa counts positions by what is not its own padding
        self.pad = 0 if model_kind(model) == "causal" else model.config.pad_token_id or 0
        ask = asking(model, tokenizer, delimiter, chat)
        self.answers = [[ask.answer(sample, text) for text in sample.answers] for sample in self.samples]
        self._flat = [answer for answers in self.answers for answer in answers]
        self.tokens = np.array([token for answer in self._flat for token in answer.tokens])
        self.starts = np.cumsum([0, *map(len, self.answers)])[:-1]
        self.token_starts = np.cumsum([0, *(len(answer.tokens) for answer in self._flat)])[:-1]
        self.owner = np.repeat(np.arange(len(self.answers)), [len(answers) for answers in self.answers])
        self.characters = np.array([len(text) for sample in self.samples for text in sample.answers])
        self.gold = self.starts + [sample.gold for sample in self.samples]
        self.free = np.array([not sample.choices for sample in self.samples])
        self.prompts = {i: ask.prompt(sample) for i, sample in enumerate(self.samples) if sample.window}
        self.work = len(self.tokens) + sum(sample.window for sample in self.samples)
        self._texts: dict[tuple[int, ...], str] = {}

    def __len__(self) -> int:
        return len(self.samples)

    @property
    def groups(self) -> list[str]:
        """See `group_names`."""
        return group_names(self.samples)

    @property
    def strata(self) -> list[str]:
        """The right answer of every sample."""
        return [sample.answers[sample.gold] for sample in self.samples]

    def readings(self, *models: int) -> Readings:
        """Nothing read yet, of one model or of an array of them."""
        return Readings.empty(self, *models)

    @property
    def longest(self) -> int:
        """Tokens of the longest row."""
        return max(row.length for row in self._rows(range(len(self._flat))))

    def text(self, tokens: Sequence[int]) -> str:
        """What these tokens read; the same ones, which trials give again and again, are decoded once."""
        key = tuple(tokens)
        if key not in self._texts:
            self._texts[key] = str(self.tokenizer.decode(list(key)))
        return self._texts[key]

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
        return self._batches(self.gold)

    def _batches(self, answers: Sequence[int] | np.ndarray, tokens: int | None = None) -> list[Batch]:
        """Batches of the distinct rows: answers of one token share the row of their prompt.

        Of a masked model, so do all that have as many tokens.
        """
        rows = self._rows(answers)
        batches: list[list[Row]] = []
        longest = 0  # of the decoders in a batch; the rows themselves come by length
        for row in sorted(rows, key=lambda row: (len(row.tokens), len(row.decoder))):
            longest = max(longest, len(row.decoder))
            full = self.batch_size if tokens is None else max(1, tokens // (len(row.tokens) + longest))
            if not batches or len(batches[-1]) >= full:
                batches.append([])
                longest = len(row.decoder)
            batches[-1].append(row)
        return [self._batch(batch, rows) for batch in batches]

    def _rows(self, answers: Sequence[int] | np.ndarray) -> dict[Row, list[tuple[int, list[int]]]]:
        """Every distinct row, with the answers it reads and the places of their tokens.

        Longer choices of one sample branch off its prompt, if the model allows for it at that length.
        """
        owner = self.owner[np.asarray(answers)]
        rows: dict[Row, list[tuple[int, list[int]]]] = {}
        for _, mine in itertools.groupby(zip(owner, answers, strict=True), key=lambda pair: pair[0]):
            readers = [answer for _, answer in mine]
            sequences = list(dict.fromkeys(self._flat[answer].row for answer in readers))
            joint = Row.of(sequences)
            together = len(joint.tokens) <= self._branching
            for answer in readers:
                own = self._flat[answer]
                row = joint if together else Row.of([own.row], own.decoder)
                rows.setdefault(row, []).append((answer, row.places(sequences.index(own.row) if together else 0)))
        return rows

    def _batch(self, rows: Sequence[Row], readers: dict[Row, list[tuple[int, list[int]]]]) -> Batch:
        longest = max(len(row.tokens) for row in rows)
        entries = [
            (number, places[self._flat[a].start + t], token, self.token_starts[a] + t)
            for number, row in enumerate(rows)
            for a, places in readers[row]
            for t, token in enumerate(self._flat[a].tokens)
        ]

        def padded(values: Iterable[Sequence[int]], filler: int = 0) -> Tensor:
            lists = list(values)
            length = max(map(len, lists))
            return torch.tensor([[*v, *[filler] * (length - len(v))] for v in lists], device=self.device)

        input_ids = padded((row.tokens for row in rows), self.pad)
        decoder = padded((row.decoder for row in rows), self.pad) if any(row.decoder for row in rows) else None
        row_of, position, token, entry = torch.tensor(entries, device=self.device).unbind(-1)
        if not any(row.branches for row in rows):
            seen = padded([1] * len(row.tokens) for row in rows)
            return Batch(input_ids, seen, row_of, position, token, entry, decoder_input_ids=decoder)
        sees = torch.eye(longest, dtype=torch.bool).repeat(len(rows), 1, 1, 1)  # padding sees itself
        for mask, row in zip(sees, rows, strict=True):
            mask[0, : len(row.tokens), : len(row.tokens)] = row.sees()
        positions = padded(row.positions for row in rows)
        return Batch(input_ids, sees.to(self.device), row_of, position, token, entry, positions)
