"""What the method asks of samples: a language model's (`language/samples.py`) and a caller's own (`objective.py`).

Samples come in batches; a batch that a model reads gives tensors; readings keep these in their places, for one model or
an array of models, and say what they amount to.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol, Self

import numpy as np
from torch import Tensor, nn

from lasertri.measure.measurement import Measurement
from lasertri.support.journal import Journal
from lasertri.support.sharing import Share

Advance = Callable[[int], object]  # a progress bar's `update`: told how much was read


class SampleBatch(Protocol):
    """What runs through the model at once: rows or samples, which can be taken apart."""

    def __len__(self) -> int: ...

    def __getitem__(self, part: slice, /) -> Self: ...

    @property
    def entry(self) -> Tensor:
        """`[N]`, the place in the readings of everything that `read` gives."""

    @property
    def size(self) -> int:
        """Tokens that are run, padding included; of a caller's own samples their number."""

    def loss(self, model: nn.Module) -> Tensor:
        """The loss summed over samples, with a gradient."""

    def read(self, model: nn.Module) -> tuple[Tensor, Tensor]:
        """What the readings record, `[N]` each."""


class SampleReadings(Protocol):
    """What a model, or several at once, gave for samples."""

    def record(self, batch: SampleBatch, first: Tensor, second: Tensor, /) -> None:
        """Keep what a batch gave, `[…, N]` each."""

    def update(self, other: Self) -> None:
        """Take over what the other has read."""

    def __getitem__(self, model: int | Sequence[int]) -> Self: ...

    def check(self) -> None:
        """Raise if something is NaN."""

    def outcomes(
        self, chosen: Sequence[int] | None = None, *, normalize: bool = False
    ) -> tuple[np.ndarray, np.ndarray]:
        """Each chosen sample's score, bool or from 0 to 1, and its loss with the sign turned, `[…, S]` each."""

    def sample_losses(self, chosen: Sequence[int] | None = None) -> np.ndarray:
        """What a step lowers, of each chosen sample, `[…, S]`."""

    def measurement(self, chosen: Sequence[int] | None = None, *, normalize: bool = False) -> Measurement:
        """The figures of one model on the chosen samples (on all), all of which were read."""


class Samples(Protocol):
    """Samples that a model can be scored and measured on."""

    def __len__(self) -> int: ...

    @property
    def groups(self) -> Sequence[str]:
        """Equal for samples that are not independent."""

    @property
    def strata(self) -> Sequence[str]:
        """What every stage of a race should hold in proportion."""

    @property
    def questions(self) -> Sequence[str]:
        """Every sample's prompt, to be shown beside answers; none where samples are the caller's own."""

    @property
    def work(self) -> int:
        """How much there is to read of all samples, as `read` tells it."""

    @property
    def replayable(self) -> bool:
        """Whether their batches are token batches and give all that is read, so that trials can replay layers."""

    def batches(self, samples: Iterable[int] | None = None) -> Sequence[SampleBatch]:
        """Batches that read these samples (all)."""

    def loss_batches(self, samples: Sequence[int]) -> Sequence[SampleBatch]:
        """Batches of these samples that give what a step lowers."""

    def row_samples(self, batch: Any, /) -> Tensor | None:
        """`[R]`, the sample of each of the batch's rows, by which layers are given it; None where that is not known."""

    def gold_batches(self) -> Sequence[SampleBatch]:
        """Batches that give the loss of all samples."""

    def readings(self, *models: int) -> SampleReadings:
        """Nothing read yet, of one model or of an array of them."""

    @property
    def content(self) -> str:
        """Equal for samples that are asked alike, as far as that is known."""

    def read(
        self,
        model: nn.Module,
        chosen: Sequence[int] | None = None,
        advance: Advance = ...,
        journal: Journal = ...,
        share: Share = ...,
    ) -> SampleReadings:
        """All that a model gives for the chosen samples (for all); `advance` is told how much that was.

        Args:
            journal: of what this model gives; it is read for no batch that stands there.
            share: of the batches those that are read. What a sample gives is rounded as its batch has it, so that
                batches are what is dealt out.
        """
