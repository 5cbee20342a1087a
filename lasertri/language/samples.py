"""Samples tokenised once, and the batches that read their answers."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lasertri.data.sample import Sample, group_names
from lasertri.language.asking import asking
from lasertri.language.encoding import Batch, Row
from lasertri.language.readings import Readings
from lasertri.model.architectures import branching_length
from lasertri.model.loading import model_kind


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
