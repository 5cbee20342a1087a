"""The folder of a reproduction: a file for every finished column, from which tables are made and runs go on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lasertri.data.papers.registry import TASKS
from lasertri.errors import LasertriError
from lasertri.reproduce.plan import BASELINE
from lasertri.search.strategies import STRATEGIES
from lasertri.support.atomic_files import write_whole
from lasertri.support.output_folder import rescued
from lasertri.support.shown import failure
from lasertri.support.workspace import sweep, workspace

Record = dict[str, Any]


class Folder:
    """`TASK/COLUMN.json` for every column that was run, and `table-N.md` and `.json`; tables may share a folder.

    Raises:
        LasertriError: it cannot be made or written, or a column's file cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            path.mkdir(parents=True, exist_ok=True)
            with workspace(path):  # a column is worth hours
                pass
        except OSError as error:
            raise LasertriError(f"{path}: expected a folder that can be written: {failure(error)}") from error
        self.records: dict[tuple[str, str], Record] = {}
        for task in TASKS:
            sweep(path / task)
            for column in (BASELINE, *STRATEGIES):
                file = path / task / f"{column}.json"
                if file.exists():
                    self.records[task, column] = _read(file)

    def check(self, rules: dict[str, Any]) -> None:
        """Raise if a column was run under other rules."""
        for (task, column), record in self.records.items():
            for name, value in rules.items():
                if record["rules"].get(name) != value:
                    raise LasertriError(
                        f"{self.path}: expected columns with {name} {value!r}, got {record['rules'].get(name)!r} in "
                        f"{task}/{column}.json; choose another folder, or the options it was made with"
                    )

    def finished(self, task: str, column: str) -> bool:
        return "result" in self.records.get((task, column), {})

    def write(self, task: str, column: str, record: Record) -> None:
        """Keep a column.

        Raises:
            LasertriError: it cannot be written; then it says where the column is kept instead.
        """
        text = json.dumps(record, indent=2, allow_nan=False) + "\n"
        try:
            write_whole(self.path / task / f"{column}.json", text)
        except LasertriError as error:
            kept = rescued(lambda folder: (folder / f"{column}.json").write_text(text, encoding="utf-8"), self.path)
            if kept is None:
                raise
            raise LasertriError(f"{error}; the column is kept in {kept}") from error
        self.records[task, column] = record

    def write_table(self, table: dict[str, Any], text: str) -> None:
        """Keep a table, in place of what it was before."""
        name = f"table-{table['table']}"
        write_whole(self.path / f"{name}.json", json.dumps(table, indent=2, allow_nan=False) + "\n")
        write_whole(self.path / f"{name}.md", text)


def _read(file: Path) -> Record:
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise LasertriError(f"{file}: expected a column's record, but it cannot be read: {error}; delete it") from error
    if not isinstance(record, dict) or not isinstance(record.get("rules"), dict):
        raise LasertriError(f"{file}: expected a column's record with its rules; delete it or choose another folder")
    return record
