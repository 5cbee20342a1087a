"""Samples tokenised once, and the batches that read their answers."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lasertri.data.sample import Sample, group_names
from lasertri.language.answer_table import AnswerTable
from lasertri.language.asking import asking, vocabularies
from lasertri.language.choices import ChoiceBatch
from lasertri.language.encoding import Batch, Read, TokenRow, batched
from lasertri.language.generation import written
from lasertri.language.readings import Readings
from lasertri.measure.protocol import Advance
from lasertri.model.architectures import branching_length
from lasertri.model.loading import model_kind
from lasertri.support.journal import NOTHING, Journal, Record
from lasertri.support.memory import as_memory_allows
from lasertri.support.sharing import ALL, Share

TOGETHER = 1 << 60  # tokens: all samples asked for in one batch


class EncodedSamples:
    """Samples tokenised once, and the batches that read all their answers or only the right ones.

    Args:
        delimiter, chat: see `asking`.

    Attributes:
        answers: each sample's, as tokens.
        table: the same answers end to end.
        prompts: for the samples whose text is written, by index, the tokens that it is written after.
        asked: how the first of them is asked.
        groups: see `group_names`.
        strata: each sample's right answer.
        questions: each sample's prompt.
        replayable: whether one forward pass gives all that is read.
        work: how many tokens are read or written for all samples.
        pad: the token that pads rows.

    Raises:
        LasertriError: see `asking`.
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
        pad = 0 if model_kind(model) == "causal" else model.config.pad_token_id or 0
        self.pad = pad if 0 <= pad < vocabularies(model)[0] else 0
        ask = asking(model, tokenizer, delimiter, chat)
        self.answers = [ask.answers(sample) for sample in self.samples]
        self.table = AnswerTable(self.samples, self.answers, tokenizer)
        self.prompts = {i: ask.prompt(sample) for i, sample in enumerate(self.samples) if sample.window}
        self.asked = ask.asked(self.samples[0]) if self.samples else None
        self.groups = group_names(self.samples)
        self.strata = [sample.answers[sample.gold] for sample in self.samples]
        self.questions = [sample.prompt for sample in self.samples]
        self.replayable = not self.prompts  # what is written token by token takes many forward passes
        self.work = len(self.table.tokens) + sum(sample.window for sample in self.samples)

    def __len__(self) -> int:
        return len(self.samples)

    def readings(self, *models: int) -> Readings:
        """Nothing read yet, of one model or of an array of them."""
        return Readings.empty(self.table, *models)

    @property
    def content(self) -> str:
        """The samples, wherever they are from, and their tokens."""
        return repr(([dataclasses.replace(sample, source="") for sample in self.samples], self.answers, self.prompts))

    def read(
        self,
        model: nn.Module,
        chosen: Sequence[int] | None = None,
        advance: Advance = lambda _: None,
        journal: Journal = NOTHING,
        share: Share = ALL,
    ) -> Readings:
        """All that a model gives for the chosen samples (for all); `advance` is told how many tokens that were.

        Args:
            journal, share: see `Samples.read`.
        """
        readings = self.readings()

        def read(batch: Batch) -> Record:
            return journal.of(batch.entry.tolist(), functools.partial(batch.read, model))

        for batch, found in as_memory_allows(share(self.batches(chosen)), read):
            readings.record(batch, *found)
            advance(len(batch.entry))
        for i, text in written(model, self, chosen, journal, share):
            readings.written[i] = text
            advance(self.samples[i].window)
        return readings

    @property
    def longest(self) -> int:
        """Tokens of the longest row."""
        return max(row.length for row in self._rows(range(len(self.table.answers))))

    def batches(self, samples: Iterable[int] | None = None, *, tokens: int | None = None) -> list[Batch]:
        """Batches by length that read every answer of these samples (of all).

        Args:
            tokens: most tokens of a batch, padding included; by default a batch has `batch_size` rows.
        """
        chosen = range(len(self)) if samples is None else samples
        return self._batches([answer for i in chosen for answer in self.table.answers_of(i)], tokens)

    def loss_batches(self, samples: Sequence[int]) -> list[Batch] | list[ChoiceBatch]:
        """Batches by length that give the loss of these samples: of choices, that of the right one among them."""
        if any(self.table.free[i] for i in samples):
            return self._batches([self.table.gold[i] for i in samples])
        by_length = sorted(samples, key=lambda i: max(len(answer.row) for answer in self.answers[i]))
        parts: list[list[int]] = []
        rows = 0
        for i in by_length:
            more = len(self._rows(self.table.answers_of(i)))
            if not parts or rows + more > self.batch_size:
                parts.append([])
                rows = 0
            parts[-1].append(i)
            rows += more
        return [ChoiceBatch.of(batch, self.table) for part in parts for batch in self.batches(part, tokens=TOGETHER)]

    def row_samples(self, batch: Batch | ChoiceBatch, /) -> Tensor:
        """`[R]`, the sample that each row is read for; where several ask alike, one of them."""
        tokens = batch.batch if isinstance(batch, ChoiceBatch) else batch
        samples = torch.zeros(len(tokens.input_ids), dtype=torch.long)
        samples[tokens.row.cpu()] = torch.from_numpy(
            self.table.sample_of[self.table.answer_of(tokens.entry.cpu().numpy())]
        )
        return samples

    def gold_batches(self) -> list[Batch]:
        """Batches by length that read the right answer of every sample."""
        return self._batches(self.table.gold)

    def _batches(self, answers: Sequence[int] | np.ndarray, tokens: int | None = None) -> list[Batch]:
        return batched(self._rows(answers), self.pad, self.device, rows=self.batch_size, tokens=tokens)

    def _rows(self, answers: Sequence[int] | np.ndarray) -> dict[TokenRow, list[Read]]:
        """Every distinct row, with all that is read in it.

        Answers of one token share the row of their prompt; of a masked model, so do all that have as many tokens.
        Longer choices of one sample branch off its prompt, if the model allows for it at that length.
        """
        table, rows = self.table, dict[TokenRow, list[Read]]()
        for _, mine in itertools.groupby(answers, key=table.sample_of.__getitem__):
            readers = list(mine)
            sequences = list(dict.fromkeys(table.answers[number].row for number in readers))
            joint = TokenRow.of(sequences)
            together = len(joint.tokens) <= self._branching
            for number in readers:
                answer = table.answers[number]
                row = joint if together else TokenRow.of([answer.row], answer.decoder)
                places = row.places(sequences.index(answer.row) if together else 0)
                rows.setdefault(row, []).extend(
                    Read(places[answer.start + i], token, table.first_token[number] + i)
                    for i, token in enumerate(answer.tokens)
                )
        return rows
