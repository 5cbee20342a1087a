"""The trials: every candidate on the calibration samples, in stages."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
from torch import nn
from tqdm.auto import tqdm

from lasertri.edit.candidate import Candidate
from lasertri.factors.store import FactorStore
from lasertri.measure.evaluate import of_all
from lasertri.measure.measurement import Measurement
from lasertri.measure.protocol import Advance, Samples
from lasertri.search.in_place import InPlace
from lasertri.search.projected import Projected
from lasertri.search.racing import stages, survivors
from lasertri.search.settings import Settings
from lasertri.search.trial import Runner, Trial, TrialReadings
from lasertri.support.events import tell
from lasertri.support.journal import NOTHING, Journal
from lasertri.support.sharing import Share, in_each, share

if TYPE_CHECKING:
    from lasertri.language.samples import EncodedSamples


@torch.no_grad()
def run_trials(
    model: nn.Module,
    candidates: Sequence[Candidate],
    samples: Samples,
    factors: FactorStore,
    settings: Settings,
    journal: Journal = NOTHING,
) -> tuple[Measurement, list[Trial]]:
    """Measure the baseline and every candidate; in a race those beaten beyond doubt stop early.

    The model must be frozen and in evaluation mode, as inside `preserved(model)`.
    """
    parts = stages(samples.strata, seed=settings.seed) if settings.race else [list(range(len(samples)))]
    plan = plan_trials(model, candidates, samples, factors, journal)
    readings = TrialReadings.empty(samples, len(candidates))
    alive, seen, seconds = list(range(len(candidates))), list[int](), np.zeros(len(candidates))
    trials: dict[int, Trial] = {}
    total = samples.work * len(candidates)

    def end(i: int) -> None:
        """What the samples seen say of a candidate that sees no more."""
        chosen = sorted(seen)
        measurement = readings.edited[i].measurement(chosen, normalize=settings.normalize)
        beside, _ = readings.beside[i].outcomes(chosen, normalize=settings.normalize)
        gain = np.zeros(len(samples))
        gain[chosen] = measurement.correct.astype(float) - beside
        trials[i] = Trial(candidates[i], measurement, float(seconds[i]), gain)
        tell("trial", trials[i].to_dict)

    with tqdm(total=total, desc="trials", unit="entry", disable=not settings.progress) as bar:
        for part in parts:
            start, seen = journal.now(), seen + part
            tried = functools.partial(_tried, plan, candidates, alive, samples, of_all(bar.update), part, share())
            for found in in_each(tried):
                readings.update(range(len(candidates)), found)
            seconds[alive] += (journal.now() - start) / len(alive)
            if len(seen) < len(samples):
                racing, alive = alive, survivors(alive, readings, seen, samples.groups, settings)
                for i in sorted({*racing} - {*alive}):
                    end(i)
                factors.retain(candidates[i].factors_key for i in alive)
        bar.update(total - bar.n)
    readings.baseline.check()
    for i in alive:
        end(i)
    return readings.baseline.measurement(normalize=settings.normalize), [trials[i] for i in range(len(candidates))]


def _tried(
    plan: Sequence[tuple[Runner, set[int]]],
    candidates: Sequence[Candidate],
    alive: Sequence[int],
    samples: Samples,
    advance: Advance,
    part: Sequence[int],
    share: Share,
) -> TrialReadings:
    """A share of these samples under the candidates that are still in the race."""
    readings = TrialReadings.empty(samples, len(candidates))
    for runner, its_own in plan:
        if mine := sorted(its_own & set(alive)):
            readings.update(mine, runner.run([candidates[i] for i in mine], part, advance, share))
    return readings


def plan_trials(
    model: nn.Module,
    candidates: Sequence[Candidate],
    samples: Samples,
    factors: FactorStore,
    journal: Journal = NOTHING,
) -> list[tuple[Runner, set[int]]]:
    """How candidates are tried: runners, each with the numbers of its candidates.

    By projection in a replayed model where that gives the model's own answers, else with the weight in place.
    """
    numbers = set(range(len(candidates)))
    if not samples.replayable:
        return [(InPlace(model, samples, factors, journal=journal), numbers)]
    projected = Projected(model, cast("EncodedSamples", samples), candidates, factors, journal)
    in_place = InPlace(model, samples, factors, projected.shortcuts, journal)
    return [(projected, projected.supported), (in_place, numbers - projected.supported)]
