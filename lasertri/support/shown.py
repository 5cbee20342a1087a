"""An error of elsewhere, or a value, as a message shows it: in one line, and not too long."""

from __future__ import annotations

import re

from lasertri.errors import LONGEST, shown

__all__ = ["LONGEST", "reason", "shown"]


def reason(error: BaseException) -> str:
    """What an error of a library says, with its kind where it says little."""
    text = " ".join(str(error).split()).removesuffix(".")
    text = re.sub(r"^(Class v|V)alidation error for [^:]*: \w+: ", "", text)  # of huggingface_hub
    if not text or isinstance(error, KeyError | ArithmeticError):
        text = f"{type(error).__name__} {text}".strip()
    return text if len(text) <= LONGEST else f"{text[:LONGEST].rsplit(' ', 1)[0]} …"
