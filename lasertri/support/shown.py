"""A value, or an error of elsewhere, as a message shows it: in one line, and not too long."""

from __future__ import annotations

import re

LONGEST = 200  # characters


def shown(value: object) -> str:
    """Its `repr`, cut where it is long."""
    try:
        text = repr(value).replace("\n", " ")
    except (ValueError, RecursionError):  # an integer of thousands of digits, lists in lists in lists
        return f"something too large to show ({type(value).__name__})"
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"


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
