"""Samples from a jsonl, csv or parquet file; every row is checked before any model is loaded."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from string import Formatter
from typing import Any

from lasertri.data.sample import Sample, check_match
from lasertri.errors import LasertriError

Row = dict[str, Any]
PlacedRow = tuple[str, Row]
Reader = Callable[[Path], Iterator[PlacedRow]]
SampleSource = str | Path | Iterable[Sample | Row]


@dataclass(frozen=True)
class Fields:
    """Which fields of a row make a sample.

    Args:
        prompt: a template over the row's fields, such as "Q: {question}\\nA:"; a brace itself is doubled.
        choices: name of the field that lists the choices (in csv a JSON list), or a JSON list that all rows share.
        label: name of the field with the right choice: its index, or its text.
        completion: a template for the text that should follow, used where a row has no choices.
        group: name of the optional field that keeps related rows on one side of a split.
        match, window: when a completion counts as right, of all rows; see `Sample`.

    Raises:
        LasertriError: a template that names no field, or more than plain names; no such rule for completions.
    """

    prompt: str = "{prompt}"
    choices: str = "choices"
    label: str = "label"
    completion: str = "{completion}"
    group: str = "group"
    match: str = "tokens"
    window: int = 0

    def __post_init__(self) -> None:
        check_match(self.match, self.window, "fields")
        for template in (self.prompt, self.completion):
            try:
                parts = [part for part in Formatter().parse(template) if part[1] is not None]
            except ValueError as error:
                raise LasertriError(f"template {template!r}: {error}; a brace that is text is doubled") from error
            plain = all(name and not (set(name) & set(".[") or form or kind) for _, name, form, kind in parts)
            if not parts or not plain:
                raise LasertriError(
                    f"expected a template with fields in braces, such as '{{question}}', got {template!r}"
                )


def as_samples(source: SampleSource, fields: Fields | None = None) -> list[Sample]:
    """Samples from a file, from rows, or as they are.

    Raises:
        LasertriError: naming file, line and field, where a row cannot be used.
    """
    if isinstance(source, str | Path):
        return _checked(read_rows(Path(source)), fields or Fields(), str(source))
    items = list(source)
    ready = [item for item in items if isinstance(item, Sample)]
    if items and len(ready) == len(items):
        _one_kind(ready)
        return ready
    return _checked(((f"row {i}", row) for i, row in enumerate(items, 1)), fields or Fields(), "samples")


def _checked(rows: Iterable[tuple[str, Row | Sample]], fields: Fields, origin: str) -> list[Sample]:
    samples: list[Sample] = []
    label_kind: str | None = None
    grouped = False
    for source, row in rows:
        if not isinstance(row, dict):
            raise LasertriError(f"{source}: expected an object with fields, got {_name(type(row))}")
        sample = _sample(row, fields, source)
        if sample.choices:
            kind = _label_kind(row[fields.label], sample.choices)
            if kind != "either":
                if label_kind not in (None, kind):
                    raise LasertriError(
                        f"{source}, {fields.label}: expected {label_kind} as in the rows before, "
                        f"got {row[fields.label]!r}; use indices or texts throughout"
                    )
                label_kind = kind
        grouped = grouped or fields.group in row
        samples.append(sample)
    if samples and not grouped and fields.group != Fields.group:
        raise LasertriError(f"{origin}: expected a field {fields.group!r} in some row; name yours with --group")
    _one_kind(samples)
    if not samples:
        raise LasertriError(f"{origin}: expected rows with a prompt and an answer, got none")
    return samples


def _one_kind(samples: Sequence[Sample]) -> None:
    for sample in samples:
        if bool(sample.choices) != bool(samples[0].choices):
            raise LasertriError(f"{sample.source}: expected choices in all rows or in none")


def read_rows(path: Path, *, json_reader: Reader | None = None) -> Iterator[PlacedRow]:
    """Every row of a file with its place, such as "train.jsonl:17".

    Args:
        json_reader: reads a .json file; by default as jsonl.
    """
    if not path.is_file():
        raise LasertriError(f"{path}: expected a jsonl, csv or parquet file, found none there")
    readers = {".jsonl": _jsonl, ".json": json_reader or _jsonl, ".csv": _csv, ".parquet": _parquet}
    if path.suffix not in readers:
        raise LasertriError(f"{path}: expected a name that ends in .jsonl, .csv or .parquet")
    try:
        yield from readers[path.suffix](path)
    except UnicodeDecodeError as error:
        raise LasertriError(f"{path}: expected UTF-8 text ({error.reason} at byte {error.start})") from error
    except OSError as error:
        raise LasertriError(f"{path}: expected a file that can be read: {error}") from error


def _jsonl(path: Path) -> Iterator[PlacedRow]:
    with path.open(encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise LasertriError(
                    f"{path}:{number}: expected one JSON object a line ({error.msg} at column {error.colno})"
                ) from error
            yield f"{path}:{number}", row


def _csv(path: Path) -> Iterator[PlacedRow]:
    with path.open(encoding="utf-8-sig", newline="") as lines:
        reader = csv.DictReader(lines, strict=True)
        start = 2
        try:
            for row in reader:
                if None in row or None in row.values():  # how the reader marks too many and too few
                    raise LasertriError(
                        f"{path}:{start}: expected {len(reader.fieldnames or ())} fields as in the header, "
                        "got more or fewer; quote fields that contain commas"
                    )
                yield f"{path}:{start}", {name: value for name, value in row.items() if value != ""}
                start = reader.line_num + 1
        except csv.Error as error:
            raise LasertriError(f"{path}:{start}: expected comma-separated values ({error})") from error


def _parquet(path: Path) -> Iterator[PlacedRow]:
    from datasets import Dataset
    from datasets.exceptions import DatasetGenerationError
    from pyarrow import ArrowException

    try:
        table = Dataset.from_parquet(str(path))
    except (ArrowException, DatasetGenerationError) as error:
        raise LasertriError(f"{path}: expected a parquet file ({error.__cause__ or error})") from error
    for number, row in enumerate(table, 1):
        yield f"{path}:{number}", row


def _sample(row: Row, fields: Fields, source: str) -> Sample:
    prompt = _filled(fields.prompt, row, source)
    group = None if row.get(fields.group) is None else str(row[fields.group])
    common: Row = {"group": group, "match": fields.match, "window": fields.window, "source": source}
    if not fields.choices.startswith("[") and fields.choices not in row:
        if fields.completion == Fields.completion and "completion" not in row:
            raise LasertriError(
                f"{source}: expected a field {fields.choices!r} or 'completion', got {sorted(row)}; "
                "name yours with --choices and --label, or --completion"
            )
        return Sample(prompt, completion=_filled(fields.completion, row, source), **common)
    choices = _choices(fields.choices if fields.choices.startswith("[") else row[fields.choices], fields, source)
    if fields.label not in row:
        raise LasertriError(f"{source}: expected a field {fields.label!r}, got {sorted(row)}; name it with --label")
    label = _label(row[fields.label], choices, fields, source)
    return Sample(prompt, choices=choices, label=label, **common)


def _filled(template: str, row: Row, source: str) -> str:
    for _, name, _, _ in Formatter().parse(template):
        if name is None:
            continue
        if name not in row:
            raise LasertriError(
                f"{source}: expected a field {name!r} (template {template!r}), got {sorted(row)}; "
                "name yours with --prompt or --completion"
            )
        if not isinstance(row[name], str | int | float) or isinstance(row[name], bool):
            raise LasertriError(f"{source}, {name}: expected text, got {row[name]!r}")
    return template.format_map(row)


def _choices(value: object, fields: Fields, source: str) -> tuple[str, ...]:
    if isinstance(value, str):
        with suppress(json.JSONDecodeError):  # the message below shows the text
            value = json.loads(value)
    if not isinstance(value, list | tuple) or not all(isinstance(choice, str) for choice in value):
        raise LasertriError(
            f'{source}, {fields.choices}: expected a list of texts such as ["yes", "no"], got {value!r}'
        )
    return tuple(value)


def _label(value: object, choices: tuple[str, ...], fields: Fields, source: str) -> int:
    if isinstance(value, str):
        if value in choices:
            return choices.index(value)
        if value.strip().isdecimal():
            value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < len(choices):
        raise LasertriError(
            f"{source}, {fields.label}: expected an index from 0 to {len(choices) - 1} or one of {list(choices)}, "
            f"got {value!r}"
        )
    return value


def _label_kind(value: object, choices: tuple[str, ...]) -> str:
    """Whether a label is an index, a text, or the same choice either way (in csv an index is text too)."""
    if isinstance(value, str) and value in choices:
        return "either" if value == str(choices.index(value)) else "a text"
    return "an index"


def _name(kind: type) -> str:
    return {int: "a number", float: "a number", str: "text", dict: "an object", list: "a list"}.get(kind, kind.__name__)
