"""Seconds by phase, and in words."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from lasertri.support.events import tell
from lasertri.support.interrupts import heed_interrupts


class Clock:
    """`with clock("score"): …` adds to `clock.seconds["score"]`; `clock.last` is what it took this time.

    Args:
        now: says how late it is.
    """

    def __init__(self, now: Callable[[], float] = time.perf_counter) -> None:
        self.now = now
        self.seconds: dict[str, float] = {}
        self.last = 0.0

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        heed_interrupts()
        tell("phase", lambda: {"phase": phase})
        start = self.now()
        try:
            yield
        finally:
            self.last = self.now() - start
            self.seconds[phase] = self.seconds.get(phase, 0.0) + self.last


def duration(seconds: float) -> str:
    """In the unit that a reader would choose."""
    if seconds < 90:
        return f"{max(seconds, 1):.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
