"""Work that processes share: all get everyone's part, and every error."""

import functools
import logging
import os
import signal
import time
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
from team import team

from lasertri.errors import LasertriError, NonFiniteGradientError, ProcessLostError, TooLittleMemoryError
from lasertri.support.memory import as_memory_allows, memory_told
from lasertri.support.sharing import (
    everyones,
    exchanged,
    in_each,
    number,
    once,
    processes,
    require_alike,
    share,
    shared,
    shared_by,
    together,
)


def work(group):
    """One call of each."""
    with shared_by(group):
        mine = number()
        return {
            "number": number(),
            "share": share()(range(7)),
            "shared": shared(range(7), lambda mine: [10 * i for i in mine]),
            "few": shared([5], lambda mine: mine),
            "in each": in_each(lambda: 10 * mine),
            "everyones": everyones(f"of {number()}"),
            "exchanged": exchanged([(number(), to) for to in range(processes())]),
            "once": once(lambda: number() + 100),
        }


def test_every_process_gets_what_all_have():
    found = team(3, "support.test_sharing", "work")
    for rank, each in enumerate(found):
        assert each == {
            "number": rank,
            "share": [[0, 3, 6], [1, 4], [2, 5]][rank],
            "shared": [[0, 30, 60], [10, 40], [20, 50]],
            "few": [[5]],
            "in each": [0, 10, 20],
            "everyones": ["of 0", "of 1", "of 2"],
            "exchanged": [(0, rank), (1, rank), (2, rank)],
            "once": 100,
        }


def test_alone_all_work_is_ones_own():
    assert work(None) == {
        "number": 0,
        "share": [*range(7)],
        "shared": [[0, 10, 20, 30, 40, 50, 60]],
        "few": [[5]],
        "in each": [0],
        "everyones": ["of 0"],
        "exchanged": [(0, 0)],
        "once": 100,
    }
    assert shared([], list) == []


def failing(group, how):
    """In process 1 alone something goes wrong."""
    with shared_by(group):
        if how == "ends" and number() == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        if how == "differs":
            require_alike("options", lambda: number())
        if how == "outside":
            if number() == 1:
                raise NonFiniteGradientError("in layer 3")
            exchanged([0] * processes())
        if how == "last":
            if number() == 1:
                raise NonFiniteGradientError("in layer 3")
            return

        one = number()

        def fail():
            assert processes() == 1  # within, the work is this process's own
            if one == 1:
                raise MemoryError if how == "runs out" else NonFiniteGradientError("in layer 3")

        with memory_told():
            together(fail)


@pytest.mark.parametrize(
    ("how", "error", "message"),
    [
        ("raises", NonFiniteGradientError, "in layer 3"),
        ("outside", NonFiniteGradientError, "in layer 3"),
        ("last", NonFiniteGradientError, "in layer 3"),
        ("differs", LasertriError, "expected the same options in all processes, got others in process 1 than in 0"),
        (
            "runs out",
            TooLittleMemoryError,
            "expected memory for all that is asked for, but this machine has too little",
        ),
    ],
)
def test_what_one_process_meets_is_raised_in_all(how, error, message):
    for found in team(2, "support.test_sharing", "failing", how):
        assert type(found) is error
        assert str(found).startswith(message)
        assert found.raised_in_all  # by which the first alone tells it


def test_a_process_that_ends_is_told_of_in_the_others():
    found, dead = team(2, "support.test_sharing", "failing", "ends")
    assert dead is None
    assert str(found).startswith("expected all processes to go on, but one of them has ended")


def sharded(group, fails):
    """What processes do that hold parts of one model, which they run together."""
    with shared_by(group, sharded=True):
        one = number()
        with pytest.raises(TooLittleMemoryError, match="run together and so as it is"):
            in_each(lambda: list(as_memory_allows([[1, 2]], lambda _: torch.empty(1 << 50))))
        ran = list[int]()
        found = {
            "share": share()(range(3)),
            "evaluated": in_each(lambda: ran.append(one) or one),
            "once": once(lambda: ran.append(one) or 10 + one),
            "ran": ran,
        }
        if fails and one == 1:
            raise LasertriError("a part is missing")
        return found | {"told": everyones(one)}


def test_processes_with_parts_of_a_model_all_run_all_of_the_work():
    for rank, found in enumerate(team(2, "support.test_sharing", "sharded", False)):
        assert found == {"share": [0, 1, 2], "evaluated": [0, 1], "once": 10, "ran": [rank, rank], "told": [0, 1]}


def test_what_one_of_them_meets_waits_for_no_other():
    left, failed = team(2, "support.test_sharing", "sharded", True)
    assert (type(failed), str(failed)) == (LasertriError, "a part is missing")
    assert type(left) is ProcessLostError


def wary(group):
    """The warnings that are told in each process: some of them were met in one alone."""
    logger, told = logging.getLogger("lasertri.wary"), []
    handler = logging.Handler()
    handler.emit = lambda record: told.append(record.getMessage())
    logger.addHandler(handler)
    with shared_by(group), shared_by(group):

        def warn(process):
            logger.warning("all share %d", 7)
            if process:
                logger.warning("not %s", "the first")
            logger.info("no warning")

        together(functools.partial(warn, number()))
        everyones(0)
        if number() == 2:
            logger.warning("at the end")
    return told


def test_what_others_are_warned_of_the_first_tells_once():
    first, second, third = team(3, "support.test_sharing", "wary")
    assert first == ["all share 7", "not the first", "at the end"]
    assert second == ["all share 7", "not the first"]
    assert third == ["all share 7", "not the first", "at the end"]


def broken(group, how):
    """What one process says when it cannot go on with the others."""
    if how == "silent":
        group = dist.new_group(timeout=timedelta(seconds=1))
        time.sleep(4 * dist.get_rank())
    else:
        dist.all_gather_object = faulty
    with shared_by(group):
        everyones(0)


def faulty(*_, **__):
    raise RuntimeError("enforce fail: op.preamble.length <= op.nbytes. 8 vs 4")


def test_a_fault_is_not_taken_for_the_end_of_a_process():
    for error in team(2, "support.test_sharing", "broken", "faulty"):
        assert type(error) is RuntimeError
        assert "enforce fail" in str(error)


@pytest.mark.slow
def test_a_process_that_does_not_answer_is_told_of():
    found, _ = team(2, "support.test_sharing", "broken", "silent")
    assert type(found) is ProcessLostError
    assert "one of them has not answered within the group's timeout" in str(found)
