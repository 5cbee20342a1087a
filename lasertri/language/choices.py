"""Batches whose loss is that of the right choice among a sample's choices, which is what a step lowers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from torch import Tensor, nn

from lasertri.language.answer_table import AnswerTable
from lasertri.language.encoding import Batch


@dataclass(frozen=True)
class ChoiceBatch:
    """A batch that reads every choice of its samples.

    Attributes:
        batch: its tokens.
        answer: `[N]`, the choice that a token read belongs to, counted over the batch.
        sample: `[A]`, the sample that a choice belongs to.
        gold: `[S]`, a sample's right choice.
    """

    batch: Batch
    answer: Tensor
    sample: Tensor
    gold: Tensor

    @classmethod
    def of(cls, batch: Batch, table: AnswerTable) -> Self:
        """Find out which answer and sample of the table every token of the batch is read for."""
        answers, answer = np.unique(table.answer_of(batch.entry.cpu().numpy()), return_inverse=True)
        samples, sample = np.unique(table.sample_of[answers], return_inverse=True)
        gold = np.searchsorted(answers, table.gold[samples])
        return cls(batch, *(torch.from_numpy(index) for index in (answer, sample, gold)))

    def __len__(self) -> int:
        return len(self.gold)

    def __getitem__(self, samples: slice) -> ChoiceBatch:
        start, stop, _ = samples.indices(len(self))
        choices = (self.sample >= start) & (self.sample < stop)
        read, numbers = choices[self.answer], choices.cumsum(0) - 1
        return ChoiceBatch(
            self.batch.reading(read.to(self.batch.row.device)),
            numbers[self.answer[read]],
            self.sample[choices] - start,
            numbers[self.gold[samples]],
        )

    @property
    def entry(self) -> Tensor:
        """See `SampleBatch`."""
        return self.batch.entry

    @property
    def size(self) -> int:
        """See `Batch.size`."""
        return self.batch.size

    def read(self, model: nn.Module) -> tuple[Tensor, Tensor]:
        """See `Batch.read`."""
        return self.batch.read(model)

    def loss(self, model: nn.Module) -> Tensor:
        """Negative log-probability of the right choice among the choices in nats, summed over samples."""
        tokens, _ = self.batch.read(model)
        choices = tokens.new_zeros(len(self.sample)).index_add(0, self.answer.to(tokens.device), tokens)
        sample = self.sample.to(tokens.device)
        table = choices.new_full((len(self.gold), len(choices)), -torch.inf)
        table[sample, torch.arange(len(choices), device=tokens.device)] = choices
        return (table.logsumexp(dim=1) - choices[self.gold.to(tokens.device)]).sum()
