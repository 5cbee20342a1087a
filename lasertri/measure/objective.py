"""Any module and any aim: the caller says how samples run, what is to fall and what is to rise."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lasertri.errors import LasertriError, NotFiniteError
from lasertri.measure.measurement import Measurement
from lasertri.measure.protocol import Advance, SampleBatch
from lasertri.support.journal import NOTHING, Journal, Record
from lasertri.support.memory import as_memory_allows
from lasertri.support.sharing import ALL, Share


@dataclass(frozen=True)
class Objective:
    """What `adapt` improves, for any `nn.Module` and samples of any kind.

    The module is in evaluation mode whenever one of these is called. A sample's loss and score must not depend on the
    other samples of its batch, and must be made without chance.

    Args:
        forward: `forward(model, batch)` runs a list of B samples and returns what the other two need.
        loss: `loss(outputs, batch)`, a tensor `[B]` to be lowered, with a gradient.
        score: `score(outputs, batch)`, a tensor or array `[B]`: right or wrong, or a quality from 0 to 1, such as
            a reciprocal rank. Its mean is what is reported and tested as accuracy.
        group: `group(sample)` is equal for related samples, which stay on one side of the split; by default a sample
            is related to itself alone.
    """

    forward: Callable[[nn.Module, list[Any]], Any]
    loss: Callable[[Any, list[Any]], Tensor]
    score: Callable[[Any, list[Any]], Tensor | np.ndarray]
    group: Callable[[Any], Hashable] | None = None

    def groups(self, samples: Sequence[Any]) -> list[Hashable]:
        """The group of every sample."""
        return [id(sample) if self.group is None else self.group(sample) for sample in samples]


def own_samples(samples: Iterable[Any]) -> list[Any]:
    """The caller's samples as a list.

    Raises:
        LasertriError: there are none, or it is a file's name.
    """
    if isinstance(samples, str | Path):
        raise LasertriError(f"expected the samples themselves beside an objective, got the file {str(samples)!r}")
    listed = list(samples)
    if not listed:
        raise LasertriError("expected samples for the objective, got none")
    return listed


@dataclass(frozen=True)
class ObjectiveBatch:
    """Samples that run together; `entry[b]` is the number of sample b."""

    objective: Objective
    samples: list[Any]
    entry: Tensor

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, part: slice) -> ObjectiveBatch:
        return ObjectiveBatch(self.objective, self.samples[part], self.entry[part])

    @property
    def size(self) -> int:
        """How many samples it has."""
        return len(self.samples)

    def loss(self, model: nn.Module) -> Tensor:
        """The loss summed over samples, with a gradient."""
        recurrent = any(isinstance(module, nn.RNNBase) for module in model.modules())
        # cuDNN runs the backward pass of a recurrent layer in training mode alone
        with torch.backends.cudnn.flags(enabled=False) if recurrent else contextlib.nullcontext():
            return self._losses(self.objective.forward(model, self.samples)).sum()

    def read(self, model: nn.Module) -> tuple[Tensor, Tensor]:
        """Loss and score of every sample, `[B]` each."""
        outputs = self.objective.forward(model, self.samples)
        return self._losses(outputs), self._scores(outputs)

    def _losses(self, outputs: Any) -> Tensor:
        losses = self.objective.loss(outputs, self.samples)
        if not isinstance(losses, Tensor) or losses.shape != self.entry.shape or not losses.is_floating_point():
            raise LasertriError(
                f"expected a loss of every sample, a floating-point tensor of shape {list(self.entry.shape)}, got "
                f"{_described(losses)}; leave samples apart (reduction='none')"
            )
        return losses.to(torch.promote_types(losses.dtype, torch.float32))

    def _scores(self, outputs: Any) -> Tensor:
        given = self.objective.score(outputs, self.samples)
        if not isinstance(given, Tensor | np.ndarray) or given.shape != self.entry.shape:
            raise LasertriError(
                f"expected a score of every sample, a tensor or array of shape {list(self.entry.shape)}, got "
                f"{_described(given)}"
            )
        scores = torch.as_tensor(given)
        slack = 8 * torch.finfo(scores.dtype).eps if scores.is_floating_point() else 0  # a cosine may exceed 1
        scores = scores.double()
        outside = scores[scores.isfinite() & ((scores < -slack) | (scores > 1 + slack))]
        if len(outside):
            raise LasertriError(
                f"expected scores from 0 to 1, got {float(outside[0]):g}; scale them, such as (1 + cosine) / 2"
            )
        return scores.clamp(0, 1).where(scores.isfinite(), torch.nan)


class ObjectiveSamples:
    """A caller's samples, in batches as they come.

    Attributes:
        groups: the caller's, numbered as they appear.
        strata: one for all, as nothing is known of the samples that a stage could spread.
        questions: none, for the same reason.
        work: one for each sample.
    """

    replayable = False  # nothing is known of what runs in which order

    def __init__(self, samples: Sequence[Any], *, objective: Objective, batch_size: int = 16) -> None:
        self.samples, self.objective, self.batch_size = list(samples), objective, batch_size
        numbers: dict[Hashable, str] = {}
        self.groups = [numbers.setdefault(group, str(len(numbers))) for group in objective.groups(self.samples)]
        self.strata, self.work = [""] * len(self.samples), len(self.samples)
        self.questions: list[str] = []

    def __len__(self) -> int:
        return len(self.samples)

    def batches(self, samples: Iterable[int] | None = None) -> list[ObjectiveBatch]:
        """Batches of these samples (of all), in their order."""
        chosen = torch.tensor(list(range(len(self)) if samples is None else samples), dtype=torch.long)
        return [
            ObjectiveBatch(self.objective, [self.samples[i] for i in part.tolist()], part)
            for part in chosen.split(self.batch_size)
        ]

    def loss_batches(self, samples: Sequence[int]) -> list[ObjectiveBatch]:
        """Batches that give the loss of these samples."""
        return self.batches(samples)

    def row_samples(self, _: Any) -> None:
        """Not known: the caller's `forward` makes of them what it likes."""

    def gold_batches(self) -> list[ObjectiveBatch]:
        """Batches that give the loss of all samples."""
        return self.batches()

    def readings(self, *models: int) -> ObjectiveReadings:
        """Nothing read yet, of one model or of an array of them."""
        return ObjectiveReadings(*(np.full((*models, len(self)), np.nan) for _ in range(2)))

    @property
    def content(self) -> str:
        """How many they are, and in which groups: the rest is the caller's."""
        return repr(self.groups)

    def read(
        self,
        model: nn.Module,
        chosen: Sequence[int] | None = None,
        advance: Advance = lambda _: None,
        journal: Journal = NOTHING,
        share: Share = ALL,
    ) -> ObjectiveReadings:
        """Loss and score of the chosen samples (of all); `advance` is told how many. See `Samples.read`."""
        readings = self.readings()

        def read(batch: ObjectiveBatch) -> Record:
            return journal.of(batch.entry.tolist(), functools.partial(batch.read, model))

        for batch, found in as_memory_allows(share(self.batches(chosen)), read):
            readings.record(batch, *found)
            advance(len(batch.samples))
        return readings


@dataclass(frozen=True)
class ObjectiveReadings:
    """Loss and score that a model, or several at once, gave for every sample, `[…, n]` each; NaN where not read."""

    losses: np.ndarray
    scores: np.ndarray

    def record(self, batch: SampleBatch, losses: Tensor, scores: Tensor) -> None:
        """Keep what a batch gave, `[…, B]` each."""
        entry = batch.entry.numpy()
        self.losses[..., entry] = losses.double().cpu().numpy()
        self.scores[..., entry] = scores.cpu().numpy()

    def update(self, other: ObjectiveReadings) -> None:
        """Take over what the other has read."""
        for mine, theirs in ((self.losses, other.losses), (self.scores, other.scores)):
            np.copyto(mine, theirs, where=~np.isnan(theirs))

    def __getitem__(self, model: int | Sequence[int]) -> ObjectiveReadings:
        return ObjectiveReadings(self.losses[model], self.scores[model])

    def check(self) -> None:
        """Raise if a loss or a score is NaN."""
        for name, values in (("loss", self.losses), ("score", self.scores)):
            failed = np.flatnonzero(np.isnan(values))
            if failed.size:
                raise NotFiniteError(
                    f"expected a finite {name} of every sample, got NaN or Inf for {len(failed)}, at {failed[0]} of "
                    f"{values.size} the first; check the objective on the model as it is, or leave the sample out"
                )

    def outcomes(
        self, chosen: Sequence[int] | None = None, *, normalize: bool = False
    ) -> tuple[np.ndarray, np.ndarray]:
        """Score and turned loss, `[…, S]` each; a sample with NaN has score 0 and infinite loss."""
        indices = slice(None) if chosen is None else list(chosen)
        losses, scores = self.losses[..., indices], self.scores[..., indices]
        failed = np.isnan(losses) | np.isnan(scores)
        return np.where(failed, 0.0, scores), np.where(failed, -np.inf, -losses)

    def sample_losses(self, chosen: Sequence[int] | None = None) -> np.ndarray:
        """The loss of each chosen sample, `[…, S]`; infinite where it is NaN."""
        _, turned = self.outcomes(chosen)
        return -turned

    def measurement(self, chosen: Sequence[int] | None = None, *, normalize: bool = False) -> Measurement:
        """Mean score and loss; there are no answers to be balanced or to collapse."""
        scores, turned = self.outcomes(chosen)
        return Measurement(
            accuracy=float(scores.mean()),
            majority_rate=None,
            balanced_accuracy=None,
            log_loss=float(-turned.mean()),
            collapsed=None,
            n=len(scores),
            correct=scores,
            losses=-turned,
        )


def _described(value: object) -> str:
    if isinstance(value, Tensor | np.ndarray):
        return f"{list(value.shape)} of {str(value.dtype).removeprefix('torch.')}"
    return f"a {type(value).__name__}"
