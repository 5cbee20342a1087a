"""Rows of tokens and batches of them. Loss and accuracy are read from the same tokens at the same positions."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lasertri.model.architectures import output_head


def alike(sequences: Sequence[Sequence[int]]) -> int:
    """How many tokens these sequences begin with that are the same in all."""
    columns = enumerate(zip(*sequences, strict=False))
    return next((i for i, column in columns if len(set(column)) > 1), min(map(len, sequences)))


@dataclass(frozen=True)
class TokenRow:
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
    def of(cls, sequences: Sequence[tuple[int, ...]], decoder: tuple[int, ...] = ()) -> TokenRow:
        """One row for sequences that begin alike."""
        if len(sequences) == 1:
            return cls(sequences[0], len(sequences[0]), decoder=decoder)
        shared = alike(sequences)
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


class Read(NamedTuple):
    """An answer's token to be read in a row: where it is predicted, and which token of the `AnswerTable` it is."""

    position: int
    token: int
    entry: int


@dataclass(frozen=True)
class Batch:
    """Rows of similar length, padded on the right, with one entry for every answer token to read.

    Attributes:
        input_ids: `[B, T]`.
        attention_mask: `[B, T]`, or where rows have branches which token sees which, `[B, 1, T, T]` bool.
        position_ids: `[B, T]` where rows have branches.
        decoder_input_ids: `[B, D]` of an encoder-decoder.
        row, position, token, entry: `[N]`; `token[n]` is predicted at `(row[n], position[n])`, of the decoder if there
            is one, and is the token `entry[n]` of the `AnswerTable`.
    """

    input_ids: Tensor
    attention_mask: Tensor
    row: Tensor
    position: Tensor
    token: Tensor
    entry: Tensor
    position_ids: Tensor | None = None
    decoder_input_ids: Tensor | None = None

    @classmethod
    def of(cls, rows: Mapping[TokenRow, Sequence[Read]], pad: int, device: torch.device) -> Batch:
        """These rows, padded to one length, and what is read in each."""

        def padded(values: Iterable[Sequence[int]], filler: int = 0) -> Tensor:
            lists = list(values)
            length = max(map(len, lists))
            return torch.tensor([[*v, *[filler] * (length - len(v))] for v in lists], device=device)

        entries = [(number, *read) for number, reads in enumerate(rows.values()) for read in reads]
        row_of, position, token, entry = torch.tensor(entries, device=device).unbind(-1)
        input_ids = padded((row.tokens for row in rows), pad)
        decoder = padded((row.decoder for row in rows), pad) if any(row.decoder for row in rows) else None
        if not any(row.branches for row in rows):
            seen = padded([1] * len(row.tokens) for row in rows)
            return cls(input_ids, seen, row_of, position, token, entry, decoder_input_ids=decoder)
        sees = torch.eye(input_ids.shape[1], dtype=torch.bool).repeat(len(rows), 1, 1, 1)  # padding sees itself
        for mask, row in zip(sees, rows, strict=True):
            mask[0, : len(row.tokens), : len(row.tokens)] = row.sees()
        positions = padded(row.positions for row in rows)
        return cls(input_ids, sees.to(device), row_of, position, token, entry, positions)

    def __len__(self) -> int:
        return len(self.input_ids)

    def __getitem__(self, rows: slice) -> Batch:
        start, stop, _ = rows.indices(len(self))
        return self.reading((self.row >= start) & (self.row < stop))

    def reading(self, chosen: Tensor) -> Batch:
        """A batch of what is read for these entries alone, `[N]` bool."""
        rows, row = self.row[chosen].unique(return_inverse=True)
        return Batch(
            self.input_ids[rows],
            self.attention_mask[rows],
            row,
            self.position[chosen],
            self.token[chosen],
            self.entry[chosen],
            None if self.position_ids is None else self.position_ids[rows],
            None if self.decoder_input_ids is None else self.decoder_input_ids[rows],
        )

    @property
    def size(self) -> int:
        """Tokens that are run, padding included."""
        return self.input_ids.numel() + (0 if self.decoder_input_ids is None else self.decoder_input_ids.numel())

    def read(self, model: nn.Module) -> tuple[Tensor, Tensor]:
        """Log-probability of every answer token, FP32 `[N]`, and the most probable token in its place `[N]`."""
        log_probs = self.log_probs(model)
        place = self.places[2].to(log_probs.device)
        return log_probs[place, self.token.to(log_probs.device)], log_probs.argmax(-1)[place]

    def log_probs(self, model: nn.Module) -> Tensor:
        """Of every token at every one of `places`, FP32 `[P, V]`."""
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
        row, position, _ = self.places
        with _head_reads(model, row, position) as selected:
            logits = model(**inputs, use_cache=False).logits
        if not selected:
            logits = logits[row.to(logits.device), position.to(logits.device)]
        return logits.reshape(len(row), -1).float().log_softmax(-1)

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


def batched(
    reads: Mapping[TokenRow, Sequence[Read]], pad: int, device: torch.device, *, rows: int, tokens: int | None = None
) -> list[Batch]:
    """Batches by length of these rows, with what is read in each.

    Args:
        pad: the token that fills rows up.
        rows, tokens: how many make a batch: so many rows, or as many as have no more than so many tokens, padding
            included.
    """
    batches: list[dict[TokenRow, Sequence[Read]]] = []
    longest = 0  # of the decoders in a batch; the rows themselves come by length
    for row in sorted(reads, key=lambda row: (len(row.tokens), len(row.decoder))):
        longest = max(longest, len(row.decoder))
        full = rows if tokens is None else max(1, tokens // (len(row.tokens) + longest))
        if not batches or len(batches[-1]) >= full:
            batches.append({})
            longest = len(row.decoder)
        batches[-1][row] = reads[row]
    return [Batch.of(batch, pad, device) for batch in batches]


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
