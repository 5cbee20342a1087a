"""Work shared by processes: each runs its part of it, and all get what every one of them found.

All run the same program on the same input, and decide everything alike, because they decide by what was shared. An
error of one is raised in all, so that none waits for another for ever.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

import torch.distributed as dist

from lasertri.errors import RAISED_IN_ALL, LasertriError

Item = TypeVar("Item")
Found = TypeVar("Found")

_group: ContextVar[Any] = ContextVar("group", default=None)


@contextmanager
def shared_by(group: Any) -> Iterator[None]:
    """Within, work is shared by the processes of a `torch.distributed` group, all of which are here; None: by none."""
    token = _group.set(group)
    try:
        yield
    finally:
        _group.reset(token)


def processes() -> int:
    """How many share the work."""
    return 1 if _group.get() is None else dist.get_world_size(_group.get())


def number() -> int:
    """This process's among them, from 0."""
    return 0 if _group.get() is None else dist.get_rank(_group.get())


def share(items: Sequence[Item]) -> list[Item]:
    """This process's part of them."""
    return list(items[number() :: processes()])


def together(run: Callable[[], Found]) -> Found:
    """What `run` gives here, once it has gone well in all processes. Within, all work is this process's own.

    Raises:
        Exception: what it raised in the first process in which it failed.
    """
    if processes() == 1:
        return run()
    found: Any = None
    failure: Exception | None = None
    try:
        with shared_by(None):
            found = run()
    except Exception as error:
        failure = error
    for process, other in enumerate(everyones(None if failure is None else _portable(failure))):
        if other is not None:
            raise in_all(failure if failure is not None and process == number() else other)
    return found


def in_all(error: Exception) -> Exception:
    """An error that all processes raise alike."""
    setattr(error, RAISED_IN_ALL, True)
    return error


def shared(items: Sequence[Item], run: Callable[[list[Item]], Found]) -> list[Found]:
    """What `run` gives for every process's share of the items; of an empty share nothing.

    Tensors should be on the CPU. Within `run`, all work is this process's own.

    Raises:
        Exception: see `together`.
    """
    mine = share(items)
    found = together(lambda: [run(mine)] if mine else [])
    return [each for theirs in everyones(found) for each in theirs]


def once(run: Callable[[], Found]) -> Found:
    """What `run` gives in the first process, for all of them."""
    [found] = shared([run], lambda runs: runs[0]())
    return found


def require_alike(what: str, content: Callable[[], object]) -> None:
    """All processes must have the same, by its `repr`.

    Raises:
        LasertriError: they have not.
    """
    if processes() == 1:
        return
    seen = everyones(hashlib.sha256(repr(content()).encode()).hexdigest())
    other = next((process for process, each in enumerate(seen) if each != seen[0]), None)
    if other is not None:
        raise in_all(
            LasertriError(f"expected the same {what} in all processes, got others in process {other} than in 0")
        )


def everyones(mine: Found) -> list[Found]:
    """What every process has of something, by their numbers.

    Raises:
        LasertriError: a process has ended.
    """
    if processes() == 1:
        return [mine]
    each: list[Any] = [None] * processes()
    with _all_there():
        dist.all_gather_object(each, mine, group=_group.get())
    return each


def exchanged(parcels: Sequence[Found]) -> list[Found]:
    """What every process has for this one, of a parcel for each.

    Raises:
        LasertriError: a process has ended.
    """
    if processes() == 1:
        return list(parcels)
    received = []
    with _all_there():
        for sender in range(processes()):
            here: list[Any] = [None]
            source = dist.get_global_rank(_group.get(), sender)
            sent = list(parcels) if sender == number() else None
            dist.scatter_object_list(here, sent, src=source, group=_group.get())
            received += here
    return received


@contextmanager
def _all_there() -> Iterator[None]:
    try:
        yield
    except (dist.DistError, RuntimeError) as error:
        raise LasertriError(
            "expected all processes to go on, but one of them has ended; its own message says why, and the same "
            "command goes on from where it was"
        ) from error


def _portable(error: Exception) -> Exception:
    """The error as other processes can have it."""
    known = type(error).__module__ in ("builtins", LasertriError.__module__)
    if known and all(isinstance(part, str | int) for part in error.args):
        return error
    return RuntimeError(f"{type(error).__name__}: {error}")
