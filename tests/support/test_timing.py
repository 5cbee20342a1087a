"""Phases are timed, and none begins after an interrupt."""

import pytest

from lasertri.support import interrupts
from lasertri.support.timing import Clock


def test_an_interrupt_that_was_swallowed_ends_the_work_where_the_next_phase_begins(monkeypatch):
    clock = Clock()
    with clock("score"):
        monkeypatch.setattr(interrupts, "_seen", True)
    with pytest.raises(KeyboardInterrupt), clock("trials"):
        raise AssertionError("it has begun")
    assert clock.seconds.keys() == {"score"}
