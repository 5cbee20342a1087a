"""Interrupts, also those that a library swallows: while it is imported one may end in any error, or in none."""

from __future__ import annotations

import signal
from types import FrameType

_seen = False


def note_interrupts() -> None:
    """Remember from now on that there was one; it is raised as ever."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else it is ignored, or somebody else's
        signal.signal(signal.SIGINT, _note)


def interrupted() -> bool:
    """Whether there was one."""
    return _seen


def heed_interrupts() -> None:
    """Stop here for an interrupt that was swallowed on its way up: a destructor or a callback had it."""
    if _seen:
        raise KeyboardInterrupt


def _note(number: int, frame: FrameType | None) -> None:
    global _seen
    _seen = True
    signal.default_int_handler(number, frame)
