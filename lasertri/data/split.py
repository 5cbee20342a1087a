"""Which samples calibrate and which are held out."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np

from lasertri.data.sample import group_names
from lasertri.errors import LasertriError

FEWEST = 20  # below this an edit that helps cannot be told from luck


T = TypeVar("T")
Groups = Callable[[Sequence[Any]], Sequence[Hashable]]


@dataclass(frozen=True)
class Split(Generic[T]):
    """The samples that calibrate and those that are held out; no group is on both sides."""

    calibration: list[T]
    held_out: list[T]


def split_samples(
    samples: Sequence[T],
    *,
    held_out: Sequence[T] | None = None,
    calibration: int = 100,
    held_out_limit: int = 2000,
    seed: int = 0,
    group_names: Groups = group_names,
) -> Split[T]:
    """Draw the calibration samples; the rest is held out, unless held-out samples are given.

    At most half of the samples calibrate (all may, where held-out samples are given). Samples of one group never
    fall on both sides.

    Raises:
        LasertriError: fewer than 20 samples would calibrate, or a group is on both sides.
    """
    generator = np.random.default_rng(seed)
    groups: dict[Hashable, list[int]] = {}
    for index, name in enumerate(group_names(samples)):
        groups.setdefault(name, []).append(index)
    wanted = min(calibration, len(samples) if held_out is not None else len(samples) // 2)
    names = list(groups)
    chosen: list[int] = []
    rest: list[int] = []
    for name in (names[i] for i in generator.permutation(len(names))):
        fits = len(chosen) + len(groups[name]) <= wanted
        (chosen if fits else rest).extend(groups[name])
    if len(chosen) < FEWEST:
        raise LasertriError(
            f"expected at least {FEWEST} calibration samples, got {len(chosen)} of {len(samples)} "
            "(half of the rows are held out, groups stay together); bring more rows, samples to hold out, or a larger "
            "calibration"
        )
    if held_out is not None:
        shared = set(group_names(held_out)) & set(group_names([samples[i] for i in chosen]))
        if shared:
            raise LasertriError(
                f"expected held-out samples of other groups and prompts than the calibration's, got {len(shared)} on "
                f"both sides, such as {min(map(str, shared))!r}"
            )
        rest_samples = [held_out[i] for i in generator.permutation(len(held_out))]
    else:
        rest_samples = [samples[i] for i in rest]
    return Split([samples[i] for i in chosen], rest_samples[:held_out_limit])


def standard_split(
    samples: Sequence[T],
    *,
    held_out: Sequence[T] | None = None,
    held_out_limit: int = 2000,
    seed: int = 0,
    group_names: Groups = group_names,
) -> Split[T]:
    """LASER's split: the first fifth of the rows, in their order, calibrates; the rest is held out.

    Where held-out samples are given all rows calibrate. Held-out rows whose group is on the other side are left out.

    Raises:
        LasertriError: fewer than 20 samples would calibrate, or none would be held out.
    """
    first = len(samples) if held_out is not None else int(0.2 * len(samples))
    chosen, rest = list(samples[:first]), list(samples[first:] if held_out is None else held_out)
    if len(chosen) < FEWEST:
        raise LasertriError(
            f"expected at least {FEWEST} samples in the first fifth of the rows, got {len(chosen)} of {len(samples)}; "
            "bring more rows, or choose a strategy that ends in 100-eval"
        )
    known = set(group_names(chosen))
    rest = [sample for sample, name in zip(rest, group_names(rest), strict=True) if name not in known]
    if not rest:
        raise LasertriError("expected held-out samples of other groups and prompts than the first fifth's, got none")
    return Split(chosen, drawn_samples(rest, held_out_limit, seed))


def drawn_samples(samples: Sequence[T], count: int, seed: int) -> list[T]:
    """A seeded draw of so many samples (of all, if there are no more), in their order."""
    drawn = np.random.default_rng(seed).permutation(len(samples))[:count]
    return [samples[i] for i in sorted(drawn)]
