"""Where the rows of a public dataset come from: its own files in a folder, or the hub's parquet copy of it."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lasertri.data.files import PlacedRow, Row, parsed_json, read_rows, require_datasets
from lasertri.errors import LasertriError
from lasertri.support.shown import reason, shown

_EXPECTED = {"str": "text", "dict": "an object", "list": "a list"}
REVISION = "refs/convert/parquet"  # the hub's own parquet copy; loading scripts no longer run


@dataclass(frozen=True)
class Source:
    """A public dataset.

    Attributes:
        repository: its id on the hub.
        config: which of its configurations.
        splits: the splits that are read, in order.
        columns: the fields that are read of the hub's rows.
        editions: its own files: for each edition a name for every split (`*` and `**` as in a shell), the preferred
            one first.
        url: where these files are to be had.
    """

    repository: str
    config: str
    splits: tuple[str, ...]
    columns: tuple[str, ...]
    editions: tuple[tuple[str, ...], ...]
    url: str

    def rows(self, data_dir: Path | None = None) -> list[list[PlacedRow]]:
        """The rows of every split, each with its place for messages.

        Args:
            data_dir: folder with the dataset's own files, or with a copy of the hub's parquet branch (config/split/
                *.parquet); by default the hub.

        Raises:
            LasertriError: the files are not there or cannot be read, or the hub cannot be reached.
        """
        if data_dir is None:
            return [self._of_hub(split) for split in self.splits]
        if not data_dir.is_dir():
            raise LasertriError(f"expected a folder with {self.repository}'s files, found none at {data_dir}")
        read = functools.partial(read_rows, json_reader=_document, columns=self.columns)
        for edition in (*self.editions, tuple(map(self._files, self.splits))):
            found = [sorted(data_dir.glob(name)) for name in edition]
            if all(found):
                return [[row for path in paths for row in read(path)] for paths in found]
        wanted = " or ".join(" with ".join(edition) for edition in self.editions)
        copy = " and ".join(self._files(split) for split in self.splits)
        raise LasertriError(
            f"expected {wanted} in {data_dir}, or the hub's copy ({copy}), found none; get it from {self.url}, or "
            "leave out the data folder where the hub can be reached"
        )

    def _files(self, split: str) -> str:
        return f"{self.config}/{split}/*.parquet"

    def _of_hub(self, split: str) -> list[PlacedRow]:
        require_datasets(f"expected a data folder with {' and '.join(self.editions[0])}, or what reads the hub's copy")
        from datasets import load_dataset
        from datasets.exceptions import DatasetGenerationError

        origin, files = self.repository, self._files(split)
        try:
            table = load_dataset(origin, data_files={split: files}, split=split, revision=REVISION)
        except DatasetGenerationError as error:
            problem = reason(error.__cause__ or error)
            raise LasertriError(f"{origin}, {files}: expected parquet files ({problem})") from error
        except OSError as error:  # absent, or no network
            raise LasertriError(
                f"expected the dataset {origin}, {files} on the hub: {reason(error)}; where there is no network, "
                f"name a folder with {' and '.join(self.editions[0])} from {self.url}"
            ) from error
        lacking = set(self.columns) - set(table.column_names)
        if lacking:
            raise LasertriError(f"{origin}, {split}: expected fields {sorted(lacking)}, got {table.column_names}")
        return [(f"{origin} {split}:{i}", row) for i, row in enumerate(table.select_columns(list(self.columns)), 1)]


def _document(path: Path) -> Iterator[PlacedRow]:
    """Rows of a .json file: a list, or BIG-bench's object, whose fields every one of its `examples` gets."""
    document = parsed_json(path.read_text(encoding="utf-8-sig"), path)
    shared: Row = {}
    if isinstance(document, dict) and isinstance(document.get("examples"), list):
        document, shared = document["examples"], {k: v for k, v in document.items() if k != "examples"}
    if not isinstance(document, list):
        raise LasertriError(f"{path}: expected a list of rows, or an object with 'examples'")
    for number, row in enumerate(document, 1):
        place = f"{path}, row {number}"
        if not isinstance(row, dict):
            raise LasertriError(f"{place}: expected an object with fields, got {shown(row)}")
        yield place, shared | row


def value_of(placed: PlacedRow, field: str, kind: type) -> Any:
    """A row's field, which must be there and of this type (a text must not be empty)."""
    place, row = placed
    if field not in row:
        raise LasertriError(f"{place}: expected a field {shown(field)}, got {shown(sorted(row))}")
    value = row[field]
    if not isinstance(value, kind) or (isinstance(value, str) and not value.strip()):
        raise LasertriError(f"{place}, {field}: expected {_EXPECTED[kind.__name__]}, got {shown(value)}")
    return value


def index_of(placed: PlacedRow, field: str, names: Sequence[str]) -> int:
    """A row's field that names one of these, or is its index."""
    place, row = placed
    value = row.get(field)
    if value in names:
        return names.index(value)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < len(names):
        raise LasertriError(f"{place}, {field}: expected one of {list(names)} or its index, got {shown(value)}")
    return value
