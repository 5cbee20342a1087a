"""The options of `adapt`, written into the page that asks for them when the site is built."""

from __future__ import annotations

from dataclasses import MISSING
from typing import Any

from lasertri.search.settings import Settings
from lasertri.support.options import declared

MARK = "<!-- options of adapt -->"


def on_page_markdown(markdown: str, **_: Any) -> str:
    """MkDocs calls this with every page."""
    return markdown.replace(MARK, options_table()) if MARK in markdown else markdown


def options_table() -> str:
    """A row for every option, as keyword and on the command line alike."""
    rows = [
        f"| `{name}` | {each.option.section.lower()} | {_default(each.default)} | {_cell(each.option.help)} |"
        for name, each in declared(Settings).items()
    ]
    return "\n".join(["| option | of | default | |", "|---|---|---|---|", *rows])


def _default(value: object) -> str:
    return "" if value in (None, MISSING, ()) else f"`{value!r}`"


def _cell(text: str) -> str:
    return text.replace("|", r"\|").replace("<", "&lt;")
