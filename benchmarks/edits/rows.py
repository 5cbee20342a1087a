"""A record of one JSON row a line, which a benchmark appends to and goes on from."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Row = Mapping[str, Any]
KEY = ("model", "task", "seed", "method", "dtype")


class Rows:
    """The rows of a file; one for every value of the fields that are its key."""

    def __init__(self, path: Path, key: Sequence[str] = KEY) -> None:
        self.path, self.key = path, key
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        whole = text[: text.rfind("\n") + 1]
        if whole != text:  # stopped within a row
            path.write_text(whole, encoding="utf-8")
        self._rows: dict[tuple[object, ...], Row] = {
            self._key(row): row for row in map(json.loads, whole.split("\n")[:-1])
        }

    def __contains__(self, key: Row) -> bool:
        return self._key(key) in self._rows

    def __getitem__(self, key: Row) -> Row:
        return self._rows[self._key(key)]

    def append(self, row: Row) -> None:
        self._rows[self._key(row)] = row
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")

    def _key(self, row: Row) -> tuple[object, ...]:
        return tuple(row[name] for name in self.key)
