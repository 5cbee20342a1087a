"""A neutral text: plain English of many kinds, for what must be asked of a model on no task in particular."""

from __future__ import annotations

from importlib import resources


def neutral_text() -> str:
    """Twenty short passages in English, about 2,300 words, written for this package."""
    return resources.files("lasertri.data").joinpath("neutral.txt").read_text(encoding="utf-8")
