"""What becomes of a case: done or refused; anything else is a fault."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from lasertri import LasertriError

T = TypeVar("T")
LINES, CHARACTERS = 3, 1000


class Refused(Exception):  # noqa: N818 (it is the right end of a case, not an error)
    """The case was refused in a sentence."""


def attempt(function: Callable[[], T]) -> T:
    """What it gives; `Refused` where it ends in a message of lasertri's that a reader can take in."""
    try:
        return function()
    except LasertriError as error:
        readable(str(error))
        raise Refused(str(error)) from error


def readable(message: str) -> None:
    """Raise unless this is a message, of few lines, that can be printed."""
    assert message.strip()
    assert len(message.splitlines()) <= LINES, message
    assert len(message) <= CHARACTERS, message
    message.encode()
