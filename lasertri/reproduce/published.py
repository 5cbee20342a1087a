"""The published figures, which stand in `published.toml` as they are in the paper."""

from __future__ import annotations

import functools
import tomllib
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

TABLES = (1, 2, 3, 4, 5)


@dataclass(frozen=True)
class Figure:
    """What the paper gives for one task and column: accuracy in percent, and how often faster than LASER's search."""

    accuracy: float
    speedup: float | None = None


@dataclass(frozen=True)
class PaperModel:
    """A model of the papers: where it is on the hub, and how many layers it has."""

    repository: str
    revision: str | None
    layers: int


MODELS = {  # by Transformers' model type
    "gptj": PaperModel("EleutherAI/gpt-j-6B", "float16", 28),
    "roberta": PaperModel("roberta-base", None, 12),
}


def models_of(table: int) -> list[str]:
    """The models that a table has figures of, keys of `MODELS`; the first is the one it is run with by default."""
    return list(_tables()[str(table)])


def columns_of(table: int) -> list[str]:
    """A table's columns: "baseline", or the name of a strategy."""
    return list(_tables()[str(table)][models_of(table)[0]]["columns"])


def figures(table: int, model: str) -> dict[tuple[str, str], Figure]:
    """A table's figures of one of its models, by task and column."""
    rows = dict(_tables()[str(table)][model])
    columns = rows.pop("columns")
    return {
        (task, column): Figure(*cell) if isinstance(cell, list) else Figure(cell)
        for task, cells in rows.items()
        for column, cell in zip(columns, cells, strict=True)
    }


@functools.cache
def _tables() -> dict[str, Any]:
    return tomllib.loads(files(__package__).joinpath("published.toml").read_text(encoding="utf-8"))
