"""What a user is meant to read: the one exception, and a value as its message shows it."""

from __future__ import annotations

LONGEST = 200  # characters of a value
RAISED_IN_ALL = "raised_in_all"  # attribute of an error that all processes raise, of which the first can tell


class LasertriError(ValueError):
    """A mistake the caller can correct; its message says what was expected, what was given and what to do."""


class NotFiniteError(LasertriError):
    """A model gave NaN or Inf, of which the sample is named."""


class NonFiniteGradientError(NotFiniteError):
    """A gradient has NaN or Inf; whose, its message says, but not of which sample."""


class TooLittleMemoryError(LasertriError):
    """Memory does not hold even the smallest part that the work can be done in."""


class NotConvergedError(LasertriError):
    """An eigensolver or an SVD gave up on a matrix."""


class ProcessLostError(LasertriError):
    """A process that shares the work has ended, or does not answer."""


def shown(value: object) -> str:
    """Its `repr` in one line, cut where it is long."""
    try:
        text = repr(value).replace("\n", " ")
    except (ValueError, RecursionError):  # an integer of thousands of digits, lists in lists in lists
        return f"something too large to show ({type(value).__name__})"
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"
