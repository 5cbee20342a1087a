"""Samples from a jsonl, csv or parquet file; every row is checked before any model is loaded."""

from __future__ import annotations

import csv
import functools
import importlib.util
import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Formatter
from typing import Annotated, Any

from lasertri.data.sample import MATCHES, Sample, check_match
from lasertri.errors import LasertriError
from lasertri.support.options import Option, check
from lasertri.support.shown import reason, shown

Row = dict[str, Any]
PlacedRow = tuple[str, Row]
Reader = Callable[[Path], Iterator[PlacedRow]]
SampleSource = str | Path | Iterable[Sample | Row]
MOST_DIGITS = 1000  # of an integer in JSON; Python itself reads 4,300


@dataclass(frozen=True)
class Fields:
    """Which fields of a row make a sample.

    Raises:
        LasertriError: a template that names no field, or more than plain names; no such rule for completions.
    """

    prompt: Annotated[
        str,
        Option(
            r"Template over a row's fields, such as 'Q: {question}\nA:' (a brace itself is doubled); <mask> in it: a "
            "masked model answers there.",
            section="Samples",
        ),
    ] = "{prompt}"
    choices: Annotated[
        str,
        Option(
            "Field that lists the choices (in csv a JSON list), or a JSON list that all rows share.", section="Samples"
        ),
    ] = "choices"
    label: Annotated[str, Option("Field with the right choice: its index or its text.", section="Samples")] = "label"
    completion: Annotated[
        str, Option("Template of the text that should follow, for rows without choices.", section="Samples")
    ] = "{completion}"
    group: Annotated[str, Option("Field that keeps related rows on one side of the split.", section="Samples")] = (
        "group"
    )
    match: Annotated[
        str,
        Option(
            "A completion is right if it is what the model gives, as tokens or as text, or in what it writes.",
            section="Samples",
            names=MATCHES,
        ),
    ] = "tokens"
    window: Annotated[int, Option("Tokens the model writes, for --match contains.", section="Samples")] = 0

    def __post_init__(self) -> None:
        check_match(self.match, self.window, "fields")
        check(self)
        for template in (self.prompt, self.completion):
            try:
                parts = [part for part in Formatter().parse(template) if part[1] is not None]
            except ValueError as error:
                raise LasertriError(f"template {shown(template)}: {error}; a brace that is text is doubled") from error
            plain = all(name and not (set(name) & set(".[") or form or kind) for _, name, form, kind in parts)
            if not parts or not plain:
                raise LasertriError(
                    f"expected a template with fields in braces, such as '{{question}}', got {shown(template)}"
                )


def as_samples(source: SampleSource, fields: Fields | None = None) -> list[Sample]:
    """Samples from a file, from rows (those of a pandas DataFrame too), or as they are.

    A field is absent where it is null, NaN or, in csv, empty. A template reads it as nothing, as long as another of its
    fields holds something. A row's field `delimiter` is its sample's.

    Raises:
        LasertriError: naming file, line and field, where a row cannot be used.
    """
    if isinstance(source, str | Path):
        return _checked(read_rows(Path(source)), fields or Fields(), str(source))
    if not isinstance(source, Iterable):
        raise LasertriError(f"expected samples, rows, or the path of a file with rows, got {shown(source)}")
    frame: Any = source
    items = frame.to_dict("records") if hasattr(source, "columns") and hasattr(source, "to_dict") else list(source)
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
        row = {name: None if isinstance(value, float) and math.isnan(value) else value for name, value in row.items()}
        sample = _sample(row, fields, source)
        if sample.choices:
            kind = _label_kind(row[fields.label], sample.choices)
            if kind != "either":
                if label_kind not in (None, kind):
                    raise LasertriError(
                        f"{source}, {fields.label}: expected {label_kind} as in the rows before, "
                        f"got {shown(row[fields.label])}; use indices or texts throughout"
                    )
                label_kind = kind
        grouped = grouped or fields.group in row
        samples.append(sample)
    if samples and not grouped and fields.group != Fields.group:
        raise LasertriError(f"{origin}: expected a field {shown(fields.group)} in some row; name yours with --group")
    _one_kind(samples)
    if not samples:
        raise LasertriError(f"{origin}: expected rows with a prompt and an answer, got none")
    return samples


def _one_kind(samples: Sequence[Sample]) -> None:
    for sample in samples:
        if bool(sample.choices) != bool(samples[0].choices):
            raise LasertriError(f"{sample.source}: expected choices in all rows or in none")


def read_rows(
    path: Path, *, json_reader: Reader | None = None, columns: Sequence[str] | None = None
) -> Iterator[PlacedRow]:
    """Every row of a file with its place, such as "train.jsonl:17".

    Args:
        json_reader: reads a .json file; by default as jsonl.
        columns: the fields that are read of a parquet file, which must have them; by default all.
    """
    parquet = functools.partial(_parquet, columns=columns)
    readers: dict[str, Reader] = {".jsonl": _jsonl, ".json": json_reader or _jsonl, ".csv": _csv, ".parquet": parquet}
    try:
        if not path.is_file():
            raise LasertriError(f"{path}: expected a jsonl, csv or parquet file, found none there")
        if path.suffix not in readers:
            raise LasertriError(f"{path}: expected a name that ends in .jsonl, .csv or .parquet")
        yield from readers[path.suffix](path)
    except UnicodeDecodeError as error:
        raise LasertriError(f"{path}: expected UTF-8 text ({error.reason} at byte {error.start})") from error
    except OSError as error:
        raise LasertriError(f"{path}: expected a file that can be read: {reason(error)}") from error


def _jsonl(path: Path) -> Iterator[PlacedRow]:
    with path.open(encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            yield f"{path}:{number}", parsed_json(line.rstrip("\n"), path, number, expected="one JSON object a line")


def parsed_json(text: str, path: Path, line: int = 1, *, expected: str = "JSON") -> Any:
    """A value from a file's text, which begins at this line of it.

    Raises:
        LasertriError: it is none, or names a field twice, of which Python would take the last.
    """
    try:
        return json.loads(text, object_pairs_hook=_object, parse_int=_integer)
    except json.JSONDecodeError as error:
        place = f"{path}:{line - 1 + error.lineno}"
        raise LasertriError(f"{place}: expected {expected} ({error.msg} at column {error.colno})") from error
    except (ValueError, RecursionError) as error:
        got = "lists or objects too deep in each other" if isinstance(error, RecursionError) else error
        raise LasertriError(f"{path}:{line}: expected {expected}, got {got}") from error


def _object(pairs: list[tuple[str, Any]]) -> Row:
    made = dict(pairs)
    if len(made) < len(pairs):
        raise ValueError(f"the field {_twice([name for name, _ in pairs])} twice")
    return made


def _integer(digits: str) -> int:
    if len(digits) > MOST_DIGITS:
        raise ValueError(f"an integer of {len(digits):,} digits")
    return int(digits)


def _twice(names: Iterable[str]) -> str | None:
    """The first name that occurs again, as a message shows it."""
    known = set[str]()
    for name in names:
        if name in known:
            return shown(name)
        known.add(name)
    return None


def _csv(path: Path) -> Iterator[PlacedRow]:
    with path.open(encoding="utf-8-sig", newline="") as lines:
        reader = csv.DictReader(lines, strict=True)
        start = 1
        try:
            if twice := _twice(filter(None, reader.fieldnames or ())):
                raise LasertriError(f"{path}:1: expected every field once in the header, got {twice} twice")
            start = reader.line_num + 1
            for row in reader:
                if None in row or None in row.values():  # how the reader marks too many and too few
                    raise LasertriError(
                        f"{path}:{start}: expected {len(reader.fieldnames or ())} fields as in the header, "
                        "got more or fewer; quote fields that contain commas"
                    )
                yield f"{path}:{start}", {name: value or None for name, value in row.items()}
                start = reader.line_num + 1
        except csv.Error as error:
            raise LasertriError(f"{path}:{start}: expected comma-separated values ({error})") from error


def _parquet(path: Path, columns: Sequence[str] | None = None) -> Iterator[PlacedRow]:
    require_datasets(f"{path}: expected a jsonl or csv file, or what reads parquet")
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    number = 0
    try:
        with ParquetFile(path) as file:
            if twice := _twice(file.schema_arrow.names):
                raise LasertriError(f"{path}: expected every field once, got {twice} twice")
            if lacking := set(columns or ()) - set(file.schema_arrow.names):
                raise LasertriError(
                    f"{path}: expected fields {shown(sorted(lacking))}, got {shown(file.schema_arrow.names)}"
                )
            for batch in file.iter_batches(columns=columns):
                for row in batch.to_pylist():
                    number += 1
                    yield f"{path}:{number}", row
    except (ArrowException, OSError, OverflowError) as error:
        place = path if not number else f"{path}:{number + 1}"
        raise LasertriError(f"{place}: expected a parquet file whose fields can be read ({reason(error)})") from error


def require_datasets(expected: str) -> None:
    """Refuse what the extra `datasets` reads where that is not installed."""
    if importlib.util.find_spec("datasets") is None:
        raise LasertriError(f"{expected}; pip install 'lasertri[datasets]'")


def _sample(row: Row, fields: Fields, source: str) -> Sample:
    prompt = _filled(fields.prompt, row, source)
    group = None if row.get(fields.group) is None else _text(row[fields.group], f"{source}, {fields.group}")
    common: Row = {"group": group, "match": fields.match, "window": fields.window}
    common |= {"delimiter": row.get("delimiter"), "source": source}
    shared = fields.choices.startswith("[")
    if not shared and row.get(fields.choices) is None:
        if fields.completion == Fields.completion and row.get("completion") is None:
            raise LasertriError(
                f"{source}: expected a field {shown(fields.choices)} or 'completion', got {_names(row)}; "
                "name yours with --choices and --label, or --completion"
            )
        return Sample(prompt, completion=_filled(fields.completion, row, source), **common)
    choices = _choices(fields.choices if shared else row[fields.choices], fields, source)
    if fields.label not in row:
        raise LasertriError(
            f"{source}: expected a field {shown(fields.label)}, got {_names(row)}; name it with --label"
        )
    label = _label(row[fields.label], choices, fields, source)
    return Sample(prompt, choices=choices, label=label, **common)


def _filled(template: str, row: Row, source: str) -> str:
    filled, texts = "", {}
    for literal, name, _, _ in Formatter().parse(template):
        filled += literal
        if name is None:
            continue
        if name not in row:
            raise LasertriError(
                f"{source}: expected a field {shown(name)} (template {shown(template)}), got {_names(row)}; "
                "name yours with --prompt or --completion"
            )
        texts[name] = "" if row[name] is None else _text(row[name], f"{source}, {name}")
        filled += texts[name]
    if not any(text.strip() for text in texts.values()):
        first = next(iter(texts))
        raise LasertriError(f"{source}, {first}: expected text, got {shown(row[first])}")
    return filled


def _text(value: object, place: str) -> str:
    """A text, or a number as one."""
    number = math.isfinite(value) if isinstance(value, float) else isinstance(value, int)
    if isinstance(value, bool) or not (number or isinstance(value, str)):
        raise LasertriError(f"{place}: expected text, got {shown(value)}")
    try:
        return str(value)
    except ValueError as error:
        raise LasertriError(f"{place}: expected text, got {shown(value)}") from error


def _choices(value: object, fields: Fields, source: str) -> tuple[str, ...]:
    found = _json(value) if isinstance(value, str) else value
    found = found.tolist() if hasattr(found, "tolist") else found  # of a DataFrame that was read from parquet
    if not isinstance(found, list | tuple) or not all(isinstance(choice, str) for choice in found):
        raise LasertriError(
            f'{source}, {fields.choices}: expected a list of texts such as ["yes", "no"], got {shown(found)}'
        )
    return tuple(found)


def _json(text: str) -> object:
    """What a text says as JSON, or the text where it is none."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _label(value: object, choices: tuple[str, ...], fields: Fields, source: str) -> int:
    given = value
    if isinstance(value, str):
        if value in choices:
            return choices.index(value)
        if value.strip().isdecimal() and len(value) < MOST_DIGITS:
            value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < len(choices):
        raise LasertriError(
            f"{source}, {fields.label}: expected an index from 0 to {len(choices) - 1} or one of "
            f"{shown(list(choices))}, got {shown(given)}"
        )
    return value


def _label_kind(value: object, choices: tuple[str, ...]) -> str:
    """Whether a label is an index, a text, or the same choice either way (in csv an index is text too)."""
    if isinstance(value, str) and value in choices:
        return "either" if value == str(choices.index(value)) else "a text"
    return "an index"


def _names(row: Row) -> str:
    return shown(sorted(map(str, row)))


def _name(kind: type) -> str:
    return {int: "a number", float: "a number", str: "text", dict: "an object", list: "a list"}.get(kind, kind.__name__)
