"""A value as a message shows it: in one line, and no longer than that."""

from __future__ import annotations

LONGEST = 160  # characters


def shown(value: object) -> str:
    """Its `repr`, cut where it is long."""
    try:
        text = repr(value).replace("\n", " ")
    except (ValueError, RecursionError):  # an integer of thousands of digits, lists in lists in lists
        return f"something too large to show ({type(value).__name__})"
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"
