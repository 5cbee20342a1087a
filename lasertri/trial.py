"""A `Trial` is a candidate with what was measured."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import nn
from tqdm import tqdm

from lasertri.edit import replaced
from lasertri.encode import EncodedSamples
from lasertri.evaluate import Measurement, evaluate
from lasertri.factors import FactorStore
from lasertri.ops import reduce_blocks
from lasertri.strategies import Candidate


@dataclass(frozen=True)
class Trial:
    """A candidate and its measurement on the calibration samples; `seconds` include its truncation."""

    candidate: Candidate
    measurement: Measurement
    seconds: float

    def to_dict(self) -> dict[str, object]:
        return self.candidate.to_dict() | self.measurement.to_dict() | {"seconds": self.seconds}


def measure(
    model: nn.Module,
    candidates: Sequence[Candidate],
    samples: EncodedSamples,
    factors: FactorStore,
    *,
    normalize: bool = False,
    progress: bool = False,
) -> list[Trial]:
    """Measure every candidate with its weight in place; the base weight comes back after each."""
    trials = []
    with tqdm(total=len(candidates), desc="trials", disable=not progress) as bar:
        for (target, blocks), group in itertools.groupby(candidates, key=lambda c: (c.target, c.blocks)):
            weight, known = target.view(target.parameter(model)), factors.of(target, blocks)
            for chunk in _chunks(list(group), max(1, factors.free // weight.nbytes)):
                start = time.perf_counter()
                stack = reduce_blocks(weight, ratios=[c.ratio for c in chunk], factors=known, backend=factors.backend)
                share = (time.perf_counter() - start) / len(chunk)
                for candidate, reduced in zip(chunk, stack, strict=True):
                    start = time.perf_counter()
                    with replaced(target, model, reduced):
                        measurement = evaluate(model, samples, normalize=normalize, may_fail=True)
                    trials.append(Trial(candidate, measurement, share + time.perf_counter() - start))
                    bar.update()
    return trials


def _chunks(candidates: Sequence[Candidate], size: int) -> Iterator[Sequence[Candidate]]:
    """As many truncated copies of a weight at once as the memory budget allows."""
    for start in range(0, len(candidates), size):
        yield candidates[start : start + size]
