"""Results as rich draws them: on a terminal in tables, elsewhere in plain columns."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD, Box
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from lasertri.support.shown import printable

WIDEST = 100_000  # characters of a line that is not for a terminal
VERDICTS = {"helps": "bold green", "hurts": "bold red"}


def table(
    columns: Sequence[str], rows: Sequence[Sequence[str]], *, title: str | None = None, box: Box | None = SIMPLE_HEAD
) -> Table:
    """A table whose first two columns are texts and whose others are figures."""
    look: dict[str, Any] = {"title_justify": "left", "title_style": "bold", "show_header": any(columns)}
    made = Table(box=box, pad_edge=box is not None, title=title, **look)
    for number, column in enumerate(columns):
        made.add_column(_text(column), justify="left" if number < 2 else "right", overflow="fold")
    for row in rows:
        made.add_row(*map(_text, row))
    return made


def aligned(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The same as plain lines, as wide as they are."""
    lines = io.StringIO()
    Console(file=lines, width=WIDEST, color_system=None).print(table(columns, rows, box=None))
    return "\n".join(line.rstrip() for line in lines.getvalue().splitlines())


def named(sections: Mapping[str, Mapping[str, str]]) -> Group:
    """Names with what they stand for, in sections."""
    return Group(*(table(("", ""), list(entries.items()), title=title) for title, entries in sections.items()))


def compared(columns: Sequence[str], rows: Sequence[Sequence[str]], notes: Sequence[str]) -> Group:
    """Runs side by side."""
    return Group(table(columns, rows), *map(_text, notes))


def summary(result: dict[str, Any]) -> Group:
    """What `summarize` says, the figures before and after as a table."""
    from lasertri.result.summary import concluded, figures, found

    columns, rows = figures(result)
    end = _text("\n".join(concluded(result)))
    for verdict, style in VERDICTS.items():
        end.highlight_words([verdict], style)
    return Group(_text("\n".join(found(result))), table(columns, rows), end)


def _text(text: str) -> Text:
    return Text(printable(text))
