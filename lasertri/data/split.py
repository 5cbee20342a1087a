"""Which samples calibrate, which confirm what was chosen by them, and which are held out."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import numpy as np

from lasertri.data.sample import FEWEST, group_names
from lasertri.errors import LasertriError
from lasertri.support.shown import shown

T = TypeVar("T")
Groups = Callable[[Sequence[Any]], Sequence[Hashable]]
CONFIRM = 200  # samples


@dataclass(frozen=True)
class Split(Generic[T]):
    """The samples that calibrate, those that are held out, and those that confirm; no group is in two of them."""

    calibration: list[T]
    held_out: list[T]
    confirm: list[T] = field(default_factory=list)


def split_samples(
    samples: Sequence[T],
    *,
    held_out: Sequence[T] | None = None,
    calibration: int = 100,
    held_out_limit: int = 2000,
    confirm: int | None = 0,
    seed: int = 0,
    group_names: Groups = group_names,
) -> Split[T]:
    """Draw the calibration samples; the rest is held out, unless held-out samples are given.

    At most half of the samples calibrate (all may, where held-out samples are given). Samples of one group never
    fall on both sides.

    Args:
        confirm: most samples that confirm: of those that neither calibrate nor are held out, and where these are
            too few of the held-out part, up to half of the rest. None takes none of the held-out part, and at most 200.

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
    spare = [samples[i] for i in rest]
    if held_out is None:
        reported, spare = _shared_out(spare, held_out_limit, confirm)
    else:
        shared = set(group_names(held_out)) & set(group_names([samples[i] for i in chosen]))
        if shared:
            raise LasertriError(
                f"expected held-out samples of other groups and prompts than the calibration's, got {len(shared)} on "
                f"both sides, such as {shown(min(map(str, shared)))}"
            )
        reported = [held_out[i] for i in generator.permutation(len(held_out))][:held_out_limit]
    return Split([samples[i] for i in chosen], reported, _confirming(spare, reported, confirm, group_names))


def standard_split(
    samples: Sequence[T],
    *,
    held_out: Sequence[T] | None = None,
    held_out_limit: int = 2000,
    confirm: int | None = 0,
    seed: int = 0,
    group_names: Groups = group_names,
) -> Split[T]:
    """LASER's split: the first fifth of the rows, in their order, calibrates; the rest is held out.

    Where held-out samples are given all rows calibrate, and none are left to confirm. Held-out rows whose group is on
    the other side are left out.

    Args:
        confirm: see `split_samples`.

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
    if held_out is not None:
        return Split(chosen, drawn_samples(rest, held_out_limit, seed))
    drawn = np.random.default_rng(seed).permutation(len(rest))
    reported, spare = _shared_out(drawn.tolist(), held_out_limit, confirm)
    held = [rest[i] for i in sorted(reported)]
    return Split(chosen, held, _confirming([rest[i] for i in spare], held, confirm, group_names))


def drawn_samples(samples: Sequence[T], count: int, seed: int) -> list[T]:
    """A seeded draw of so many samples (of all, if there are no more), in their order."""
    drawn = np.random.default_rng(seed).permutation(len(samples))[:count]
    return [samples[i] for i in sorted(drawn)]


def _shared_out(rest: Sequence[T], held_out_limit: int, confirm: int | None) -> tuple[list[T], list[T]]:
    """What is held out of those that do not calibrate, and what is left beyond."""
    held = min(held_out_limit, len(rest) - min(confirm or 0, len(rest) // 2))
    return list(rest[:held]), list(rest[held:])


def _confirming(spare: Sequence[T], held_out: Sequence[T], confirm: int | None, group_names: Groups) -> list[T]:
    """The first of those that are left whose group is not held out."""
    held = set(group_names(held_out))
    apart = [sample for sample, name in zip(spare, group_names(spare), strict=True) if name not in held]
    return apart[: CONFIRM if confirm is None else confirm]
