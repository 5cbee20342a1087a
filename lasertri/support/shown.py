"""A value, or an error of elsewhere, as a message shows it: in one line, and not too long."""

from __future__ import annotations

LONGEST = 160  # characters


def shown(value: object) -> str:
    """Its `repr`, cut where it is long."""
    try:
        text = repr(value).replace("\n", " ")
    except (ValueError, RecursionError):  # an integer of thousands of digits, lists in lists in lists
        return f"something too large to show ({type(value).__name__})"
    return _cut(text)


def reason(error: BaseException) -> str:
    """What an error says, or its kind where it says nothing."""
    return _cut(" ".join(str(error).split()) or type(error).__name__)


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"
