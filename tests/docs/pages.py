"""README.md and the pages of docs/: their blocks of code, and the code within their lines."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from markdown_it import MarkdownIt

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@dataclass(frozen=True)
class Block:
    """A fenced block: its language ("" for the shell), its text, and the line that the text begins at."""

    language: str
    text: str
    line: int


def blocks(page: Path, language: str) -> list[Block]:
    """Those of one language, in their order."""
    fences = [token for token in MarkdownIt().parse(page.read_text(encoding="utf-8")) if token.type == "fence"]
    return [Block(language, each.content, each.map[0] + 1) for each in fences if each.info.strip() == language]


def inline_code(page: Path) -> list[str]:
    """Code within the lines of text and tables."""
    tokens = MarkdownIt("commonmark").enable("table").parse(page.read_text(encoding="utf-8"))
    children = (child for token in tokens if token.type == "inline" for child in token.children or ())
    return [child.content for child in children if child.type == "code_inline"]


def commands(page: Path) -> Iterator[list[str]]:
    """Every command line, in shell blocks and in the text, as its words."""
    lines = [line for block in blocks(page, "") for line in block.text.replace("\\\n", " ").splitlines()]
    for line in [*lines, *inline_code(page)]:
        for part in re.split(r"\s(?:&&|\|)\s", line):
            words = shlex.split(part) if part.count("'") % 2 == 0 and part.count('"') % 2 == 0 else part.split()
            if words:
                yield words
