"""A `Trial` is a candidate with what was measured; `measure` makes all of them, in stages."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from lasertri.edit.candidate import Candidate
from lasertri.factors.store import FactorStore
from lasertri.language.samples import EncodedSamples
from lasertri.measure.measurement import Measurement
from lasertri.measure.protocol import SampleReadings, Samples
from lasertri.search.in_place import read_replaced
from lasertri.search.projected import ProjectedTrials
from lasertri.search.racing import beaten, stages


@dataclass(frozen=True)
class Trial:
    """A candidate and its measurement on the calibration samples, or on those it saw before it was dropped.

    Attributes:
        seconds: its share of the batches it ran in.
        gain: `[n]`, of all calibration samples: score minus that of the baseline beside it, which is 1 for an answer
            won and -1 for one lost; 0 where not measured.
    """

    candidate: Candidate
    measurement: Measurement
    seconds: float
    gain: np.ndarray = field(repr=False, compare=False)

    @property
    def finished(self) -> bool:
        """Whether it was measured on every sample."""
        return self.measurement.n == len(self.gain)

    def to_dict(self) -> dict[str, object]:
        return self.candidate.to_dict() | self.measurement.to_dict() | {"seconds": self.seconds}


@torch.no_grad()
def measure(
    model: nn.Module,
    candidates: Sequence[Candidate],
    samples: Samples,
    factors: FactorStore,
    *,
    normalize: bool = False,
    race: bool = True,
    accept: str = "test",
    seed: int = 0,
    progress: bool = False,
) -> tuple[Measurement, list[Trial]]:
    """Measure the baseline and every candidate; in a race those beaten beyond doubt stop early.

    Only a candidate that `decide` could accept leads. The model must be frozen and in evaluation mode, as inside
    `preserved(model)`.
    """
    parts = stages(samples.strata, seed=seed) if race else [list(range(len(samples)))]
    projected = None
    # what is written token by token cannot be read off one replayed forward pass
    if isinstance(samples, EncodedSamples) and not samples.prompts:
        projected = ProjectedTrials(model, samples, candidates, factors)
    baseline: SampleReadings[Any] = samples.readings()
    readings, beside = (samples.readings(len(candidates)) for _ in range(2))
    alive, seen, seconds = list(range(len(candidates))), list[int](), np.zeros(len(candidates))
    seen_by: dict[int, list[int]] = {}
    total = samples.work * len(candidates)
    with tqdm(total=total, desc="trials", unit="entry", disable=not progress) as bar:
        for part in parts:
            start, seen = time.perf_counter(), seen + part
            fast = [] if projected is None else [i for i in alive if projected.supports(candidates[i])]
            slow = sorted(set(alive) - set(fast))
            if projected is not None and fast:
                baseline.update(projected.read(candidates, fast, part, readings, beside, bar.update))
            if slow:
                plans = {} if projected is None else projected.plans
                own = read_replaced(
                    model, candidates, slow, part, samples, factors, plans, readings, beside, bar.update
                )
                baseline.update(own)
            seconds[alive] += (time.perf_counter() - start) / len(alive)
            seen_by |= dict.fromkeys(alive, seen)
            if len(seen) < len(samples):
                alive = _survivors(alive, readings, baseline, samples, seen, normalize=normalize, accept=accept)
                factors.retain(candidates[i].factors for i in alive)
        bar.update(total - bar.n)
    baseline.check()
    trials = []
    for i, candidate in enumerate(candidates):
        chosen = sorted(seen_by[i])
        gain = np.zeros(len(samples))
        measurement = readings[i].measure(samples, chosen, normalize=normalize)
        base, _ = beside[i].outcomes(samples, chosen, normalize=normalize)
        gain[chosen] = measurement.correct.astype(float) - base
        trials.append(Trial(candidate, measurement, float(seconds[i]), gain))
    return baseline.measure(samples, normalize=normalize), trials


def _survivors(
    alive: Sequence[int],
    readings: SampleReadings[Samples],
    baseline: SampleReadings[Samples],
    samples: Samples,
    seen: Sequence[int],
    *,
    normalize: bool,
    accept: str,
) -> list[int]:
    """Those that the leader, a candidate or the baseline, does not beat; the best candidate always."""
    correct, log_probs = readings[alive].outcomes(samples, seen, normalize=normalize)
    base, base_log_probs = baseline.outcomes(samples, seen, normalize=normalize)
    quality = [(c.sum(), p.sum()) for c, p in zip(correct, log_probs, strict=True)]
    order = sorted(range(len(alive)), key=lambda k: quality[k], reverse=True)
    if accept == "test":
        beside = baseline.measure(samples, seen, normalize=normalize)
        sound = (
            k for k in order if readings[alive[k]].measure(samples, seen, normalize=normalize).sound_beside(beside)
        )
        best = next(sound, order[0])
    else:
        best = order[0]
    leader: np.ndarray = correct[best] if quality[best] > (base.sum(), base_log_probs.sum()) else base
    groups = samples.groups
    lost = beaten(correct, leader, [groups[i] for i in seen])
    return [i for k, i in enumerate(alive) if k == best or not lost[k]]
