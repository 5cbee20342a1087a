"""Work that processes share: all get everyone's part, and every error."""

import os
import signal

import pytest
from team import team

from lasertri.errors import LasertriError, NonFiniteGradientError, TooLittleMemoryError
from lasertri.support.memory import memory_told
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
