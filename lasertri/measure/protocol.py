"""What the method asks of samples; a language model's (`encode.py`) and a caller's own (`objective.py`) answer it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Protocol, Self, TypeVar

import numpy as np
from torch import Tensor, nn

if TYPE_CHECKING:
    from lasertri.measure.measurement import Measurement

S_contra = TypeVar("S_contra", contravariant=True)


class SampleBatch(Protocol):
    """What runs through the model at once."""

    @property
    def entry(self) -> Tensor:
        """`[N]`, the place in the readings of everything that `read` gives."""

    def loss(self, model: nn.Module) -> Tensor:
        """The loss summed over samples, with a gradient."""

    def read(self, model: nn.Module) -> tuple[Tensor, Tensor]:
        """What the readings record, `[N]` each."""


class SampleReadings(Protocol[S_contra]):
    """What a model, or several at once, gave for such samples."""

    def read(
        self,
        model: nn.Module,
        samples: S_contra,
        chosen: Sequence[int] | None = None,
        advance: Callable[[int], object] = ...,
    ) -> None:
        """Keep all that a model gives for the chosen samples (for all); `advance` is told how much that was."""

    def record(self, batch: SampleBatch, first: Tensor, second: Tensor, /) -> None:
        """Keep what a batch gave, `[…, N]` each."""

    def update(self, other: Self) -> None:
        """Take over what the other has read."""

    def __getitem__(self, model: int | Sequence[int]) -> Self: ...

    def check(self) -> None:
        """Raise if something is NaN."""

    def outcomes(
        self, samples: S_contra, chosen: Sequence[int] | None = None, *, normalize: bool = False
    ) -> tuple[np.ndarray, np.ndarray]:
        """Each sample's score, bool or from 0 to 1, and its loss with the sign turned, `[…, S]` each."""

    def measure(
        self, samples: S_contra, chosen: Sequence[int] | None = None, *, normalize: bool = False
    ) -> Measurement:
        """Measure one model on the chosen samples (on all), all of which were read."""


class Samples(Protocol):
    """Samples that a model can be scored and measured on."""

    def __len__(self) -> int: ...

    @property
    def groups(self) -> list[str]:
        """Equal for samples that are not independent."""

    @property
    def strata(self) -> Sequence[str]:
        """What every stage of a race should hold in proportion."""

    @property
    def work(self) -> int:
        """How much there is to read of all samples, as `SampleReadings.read` tells it."""

    def batches(self, samples: Iterable[int] | None = None) -> Sequence[SampleBatch]:
        """Batches that read these samples (all)."""

    def gold_batches(self) -> Sequence[SampleBatch]:
        """Batches that give the loss of all samples."""

    def readings(self, *models: int) -> SampleReadings[Self]:
        """Nothing read yet, of one model or of an array of them."""
