"""Work shared by processes: each runs its part of it, and all get what every one of them found.

All run the same program on the same input, and decide everything alike, because they decide by what was shared. An
error of one is raised in all, so that none waits for another for ever; what one alone was warned of, the first tells.

Where they hold parts of one model, it runs in all of them together or in none: each runs all batches, and an error,
which breaks off a run that the others are in, is raised at once.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, TypeVar

import torch.distributed as dist
import torch.distributed.nn  # noqa: F401 - its defaults, once there is a group, would keep it until gloo aborts at exit

from lasertri.errors import RAISED_IN_ALL, LasertriError, ProcessLostError
from lasertri.support.ambient import within
from lasertri.support.memory import undivided

Item = TypeVar("Item")
Found = TypeVar("Found")

# what gloo says, in a RuntimeError, where another process has gone, and where it does not answer in time
GONE = re.compile("Connection closed by peer|Connection reset by peer|Broken pipe|pair closure")
SILENT = re.compile("Timed out waiting")


class _Warnings(logging.Handler):
    """Of this process, as its logger's name and text: those to be sent, and all that the first has told."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.new, self.told = list[tuple[str, str]](), set[tuple[str, str]]()

    def emit(self, record: logging.LogRecord) -> None:
        """Take one note of it."""
        warning = record.name, record.getMessage()
        self.new.append(warning)
        self.told.add(warning)


@dataclass(frozen=True)
class _Team:
    """A group of processes, all of which are here; `sharded`: each holds a part of the model."""

    group: Any
    warnings: _Warnings
    sharded: bool


_team: ContextVar[_Team | None] = ContextVar("team", default=None)


@dataclass(frozen=True)
class Share:
    """One process's part of work that is dealt out piece by piece; by default all of it."""

    number: int = 0
    of: int = 1

    def __call__(self, items: Sequence[Item]) -> list[Item]:
        return list(items[self.number :: self.of])

    def turned(self, by: int) -> Share:
        """The same of work that is dealt out from another process on, so that none has the odd piece every time."""
        return Share((self.number + by) % self.of, self.of)


ALL = Share()


@contextmanager
def shared_by(group: Any, *, sharded: bool = False) -> Iterator[None]:
    """Within, work is shared by the processes of a `torch.distributed` group, all of which are here; None: by none.

    All leave it together.

    Args:
        sharded: whether each holds a part of the model.

    Raises:
        Exception: what left it in the first process in which something did.
    """
    if group is None:
        with within(_team, None):
            yield
        return
    warnings, logger = _Warnings(), logging.getLogger(__package__.partition(".")[0])
    logger.addHandler(warnings)
    try:
        with ExitStack() as stack:
            stack.enter_context(within(_team, _Team(group, warnings, sharded)))
            if sharded:
                stack.enter_context(undivided())
            failure: Exception | None = None
            try:
                yield
            except Exception as error:
                failure = error
            if not isinstance(failure, ProcessLostError) and not getattr(failure, RAISED_IN_ALL, False):
                everyones(None, failure)
            if failure is not None:
                raise failure
    finally:
        logger.removeHandler(warnings)


def processes() -> int:
    """How many share the work."""
    team = _team.get()
    return 1 if team is None else dist.get_world_size(team.group)


def number() -> int:
    """This process's among them, from 0."""
    team = _team.get()
    return 0 if team is None else dist.get_rank(team.group)


def share() -> Share:
    """This process's; all of it where each holds a part of the model."""
    team = _team.get()
    return ALL if team is None or team.sharded else Share(number(), processes())


def in_each(run: Callable[[], Found]) -> list[Found]:
    """What `run` gives in every process, by their numbers. Within, all work is this process's own.

    Tensors should be on the CPU.

    Raises:
        Exception: what it raised in the first process in which it failed.
    """
    if processes() == 1:
        return [run()]
    found: Any = None
    failure: Exception | None = None
    try:
        with within(_team, None):
            found = run()
    except Exception as error:
        failure = error
    return everyones(found, failure)


def together(run: Callable[[], Found]) -> Found:
    """What `run` gives here, once it has gone well in all processes; see `in_each`."""
    found = list[Found]()
    in_each(lambda: found.append(run()))
    return found[0]


def shared(items: Sequence[Item], run: Callable[[list[Item]], Found]) -> list[Found]:
    """What `run` gives for every process's share of the items; of an empty share nothing. See `in_each`."""
    mine, dealt = share()(items), share().of == processes()
    each = in_each(lambda: [run(mine)] if mine else [])
    return [found for theirs in (each if dealt else each[:1]) for found in theirs]


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
    other = next((process for process, digest in enumerate(seen) if digest != seen[0]), None)
    if other is not None:
        raise in_all(
            LasertriError(f"expected the same {what} in all processes, got others in process {other} than in 0")
        )


def exchanged(parcels: Sequence[Found]) -> list[Found]:
    """What every process has for this one, of a parcel for each.

    Raises:
        ProcessLostError: a process has ended.
    """
    team = _team.get()
    if team is None or processes() == 1:
        return list(parcels)
    everyones(None)  # another may have failed since, and would send nothing
    received = []
    with _all_there():
        for sender in range(processes()):
            here: list[Any] = [None]
            source = dist.get_global_rank(team.group, sender)
            sent = list(parcels) if sender == number() else None
            dist.scatter_object_list(here, sent, src=source, group=team.group)
            received += here
    return received


def in_all(error: Exception) -> Exception:
    """An error that all processes raise alike."""
    setattr(error, RAISED_IN_ALL, True)
    return error


def everyones(mine: Found, failure: Exception | None = None) -> list[Found]:
    """What every process has of something, by their numbers. All that is said among them is said in these words.

    Raises:
        Exception: the failure of the first process that has one; so a process says it whatever the others are about to
            say, and need not know.
        ProcessLostError: a process has ended.
    """
    team = _team.get()
    if team is None or processes() == 1:
        if failure is not None:
            raise failure
        return [mine]
    if failure is not None and team.sharded:
        raise failure
    warnings, team.warnings.new = team.warnings.new, []
    said = [None if failure is None else _portable(failure), warnings, mine]
    heard: list[Any] = [None] * processes()
    with _all_there():
        dist.all_gather_object(heard, said, group=team.group)
    if number() == 0:
        for name, text in (warning for _, theirs, _ in heard for warning in theirs):
            if (name, text) not in team.warnings.told:
                logging.getLogger(name).warning("%s", text)
    for process, (other, _, _) in enumerate(heard):
        if other is not None:
            raise in_all(failure if failure is not None and process == number() else other)
    return [found for _, _, found in heard]


@contextmanager
def _all_there() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        if SILENT.search(str(error)):
            what = "one of them has not answered within the group's timeout; see what it does"
        elif isinstance(error, dist.DistNetworkError) or GONE.search(str(error)):
            what = "one of them has ended; its own message says why"
        else:
            raise
        raise ProcessLostError(
            f"expected all processes to go on, but {what}, and the same command goes on from where it was"
        ) from error


def _portable(error: Exception) -> Exception:
    """The error as other processes can have it."""
    known = type(error).__module__ in ("builtins", LasertriError.__module__)
    if known and all(isinstance(part, str | int) for part in error.args):
        return error
    return RuntimeError(f"{type(error).__name__}: {error}")
