"""An error of elsewhere, or a value, as a message shows it: in one line, and not too long."""

from __future__ import annotations

import re
from collections.abc import Iterable

from lasertri.errors import LONGEST, shown

__all__ = ["LONGEST", "listed", "printable", "readable", "reason", "shown"]

LINES, CHARACTERS = 3, 1000  # of a message
CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def printable(text: str) -> str:
    """The same with escapes for what a terminal would obey: colours, titles, another direction of writing."""
    return CONTROLS.sub(lambda found: repr(found.group())[1:-1], text)


def readable(message: str) -> str:
    """A message for a terminal, cut where nobody would read on."""
    lines = printable(message).strip().splitlines()
    text = "\n".join(lines[:LINES])
    return text if len(lines) <= LINES and len(text) <= CHARACTERS else f"{text[: CHARACTERS - 2]} …"


def listed(items: Iterable[str], most: int = 12, *, between: str = ", ") -> str:
    """The first of these, and how many more there are."""
    known = list(items)
    rest = [f"and {len(known) - most} more"] if len(known) > most else []
    return between.join([*known[:most], *rest])


def reason(error: BaseException) -> str:
    """What an error of a library says, with its kind where it says little."""
    text = " ".join(str(error).split()).removesuffix(".")
    text = re.sub(r"^(Class v|V)alidation error for [^:]*: \w+: ", "", text)  # of huggingface_hub
    if not text or isinstance(error, KeyError | ArithmeticError):
        text = f"{type(error).__name__} {text}".strip()
    return text if len(text) <= LONGEST else f"{text[:LONGEST].rsplit(' ', 1)[0]} …"


def failure(error: BaseException) -> str:
    """Why a file could not be read or written, without its name."""
    return getattr(error, "strerror", None) or reason(error)
