"""A model's figures on samples, as it is."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from tqdm.auto import tqdm

from lasertri.measure.measurement import Measurement
from lasertri.measure.protocol import Advance, SampleReadings, Samples
from lasertri.support.journal import NOTHING, Journal
from lasertri.support.sharing import in_each, share, together


@torch.no_grad()
def evaluate(
    model: nn.Module,
    samples: Samples,
    *,
    normalize: bool = False,
    may_fail: bool = False,
    progress: str | None = None,
    journal: Journal = NOTHING,
) -> Measurement:
    """The figures of a model as it is.

    Args:
        normalize: divide a choice's log-probability by its number of characters before choosing.
        may_fail: count a sample with NaN for probabilities as answered wrongly, at infinite loss, instead of raising.
        progress: name of a progress bar, if one is wanted.
        journal: see `Samples.read`.

    Raises:
        NotFiniteError: the model gave NaN instead of probabilities.
    """
    with tqdm(total=samples.work, desc=progress, unit="token", disable=progress is None) as bar:
        readings = read_together(model, samples, advance=bar.update, journal=journal)
    if not may_fail:
        together(readings.check)
    return readings.measurement(normalize=normalize)


def read_together(
    model: nn.Module,
    samples: Samples,
    chosen: Sequence[int] | None = None,
    advance: Advance = lambda _: None,
    journal: Journal = NOTHING,
) -> SampleReadings:
    """`Samples.read`, shared by processes, see `support/sharing.py`."""
    readings, advance, mine = samples.readings(), of_all(advance), share()
    for found in in_each(lambda: samples.read(model, chosen, advance, journal, mine)):
        readings.update(found)
    return readings


def of_all(advance: Advance) -> Advance:
    """For a process that reads its share: the others are about as far."""
    times = share().of
    return lambda done: advance(times * done)
