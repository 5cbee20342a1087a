"""Whether any edit could help, and what looking for one will cost: both are known from the baseline."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import numpy as np
from tqdm.auto import tqdm

from lasertri.edit.candidate import Candidate
from lasertri.measure.measurement import Measurement
from lasertri.measure.protocol import Samples
from lasertri.measure.significance import LEVEL
from lasertri.search.settings import Settings
from lasertri.support.timing import duration

SURE = 0.01  # nats: right answers are given with a probability of 99 %


def no_truncation_can_help(
    baseline: Measurement, groups: Sequence[str], settings: Settings, *, confirmed: bool = False
) -> str | None:
    """Why no truncation of a model could be accepted, in a sentence, or None.

    A truncation is chosen for the answers that it wins. If only k independent samples have one to be won, all signs of
    a winner's gains agree by chance with probability 2^-k: no p-value of the joint test is lower.

    Args:
        baseline, groups: of the calibration samples.
        confirmed: whether fresh samples confirm the winner; they may have more to be won.
    """
    if settings.accept != "test":  # the papers' rule takes a lower loss at equal accuracy
        return None
    short = np.asarray(baseline.correct, dtype=float) < 1
    independent = len({group for group, wrong in zip(groups, short, strict=True) if wrong})
    least = 2.0**-independent
    if independent == 0:
        return f"{_of(baseline)} none is {_wrong(baseline)}, so there is nothing for a truncation to win"
    if confirmed or least <= LEVEL:
        return None
    return (
        f"{_of(baseline)} only {int(short.sum())} could be won, being {_wrong(baseline)}: a truncation that won all "
        f"would have p = {least:.2g} at best, above {LEVEL}"
    )


def no_step_can_help(baseline: Measurement, settings: Settings) -> str | None:
    """Why no step of a model, or of its singular values, is worth looking for, in a sentence, or None.

    A step lowers the loss, and may be accepted for that alone. So right answers to all samples do not end its search,
    which others of the kind may be answered wrongly; that and hardly a loss do. An `Objective`'s loss has a
    scale of its own, on which nothing is known to be little.
    """
    if settings.accept != "test" or baseline.majority_rate is None or baseline.accuracy < 1:
        return None
    loss = float(baseline.losses.mean())
    if loss > SURE:
        return None
    among = "" if baseline.choice_log_loss is None else " among the choices"
    return f"{_of(baseline)} none is {_wrong(baseline)}, and a log loss{among} of {loss:.2g} leaves nothing to lower"


def announce_trials(
    candidates: Sequence[Candidate], layers: int, samples: Samples, seconds: float, settings: Settings
) -> None:
    """Say what the trials of truncations will cost: each runs the layers from its own on, where they can be replayed.

    Args:
        layers: of the model, as far as they have targets.
        samples: that candidates are tried on.
        seconds: that the unedited model took for them.
    """
    before = [max(candidate.target.layer, 0) / layers if samples.replayable else 0.0 for candidate in candidates]
    matrices = len({candidate.target for candidate in candidates})
    most = "at most " if settings.race else ""
    forwards = len(candidates) - sum(before)
    _say(f"{len(candidates)} candidates of {matrices} matrices", most, forwards, len(samples), seconds, settings)


def announce_sizes(directions: int, samples: int, seconds: float, settings: Settings) -> None:
    """Say what the trials of a step's sizes will cost: four or so, and most often one of another direction."""
    sizes = 3 + directions
    _say(f"{sizes} sizes or so", "", float(sizes), samples, seconds, settings)


def _say(what: str, most: str, forwards: float, samples: int, seconds: float, settings: Settings) -> None:
    if settings.progress:
        tqdm.write(
            f"trials: {what}, {most}{forwards:.0f} forward passes of {samples} samples, about "
            f"{duration(forwards * seconds)}",
            file=sys.stderr,
        )


def _of(baseline: Measurement) -> str:
    return f"of {baseline.n} calibration samples"


def _wrong(baseline: Measurement) -> str:
    return "below the full score" if baseline.majority_rate is None else "answered wrongly"
