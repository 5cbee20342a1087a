"""Files of rows, some damaged; what is accepted says what the file says, and is measured as one row alone would be."""

from __future__ import annotations

import csv
import functools
import io
import json
import math
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pyarrow
import torch
from pyarrow.parquet import write_table
from subwords import byte_level, metaspace, wordpiece
from tiny import make_model, make_tokenizer
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from fuzz.outcome import Refused, attempt
from fuzz.texts import DEEP, JUNK, text
from lasertri import Fields, Sample, as_samples
from lasertri.language.samples import EncodedSamples
from lasertri.measure.evaluate import evaluate

Row = dict[str, Any]
TEMPLATES = (
    "{% for m in messages %}{{ m.role }} {{ m.content }} {% endfor %}",
    "{% for m in messages %}{{ m.role }} {{ m.content[0].text }} {% endfor %}",
    "{% for m in messages %}{{ m.role }} {% endfor %}",
    "{{ raise_exception('no\nno') }}",
    "{{ messages[0].content | lower }}",
    "{% for",
)
PARTS = {
    "gptj": make_tokenizer,
    "gpt2": wordpiece,
    "llama": byte_level,
    "bloom": metaspace,
    "bert": wordpiece,
    "roberta": functools.partial(make_tokenizer, "roberta"),
    "t5": functools.partial(make_tokenizer, "t5"),
}


@functools.cache
def language_model(architecture: str, lacking: int) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """A model with its tokenizer, which may know more tokens."""
    tokenizer = PARTS[architecture]()
    return make_model(architecture, vocab_size=len(tokenizer) - lacking), tokenizer


def case(random: Random, folder: Path) -> str:
    """Write a file, read it, ask a model."""
    rows = make_rows(random)
    fields = random.choice((Fields(), Fields(), Fields("{prompt}{n}"), Fields("{0}"), Fields("Q: {n}\nA:")))
    ending = random.choice(sorted(WRITERS))
    path = folder / f"x{ending}"
    content, truth = WRITERS[ending](random, rows)
    if random.random() < 0.2:
        content, truth = damaged(random, content), None
    path.write_bytes(content)
    samples = attempt(lambda: as_samples(path, fields))
    if truth is None and ending != ".parquet":
        truth = READERS[ending](path.read_bytes())
    if truth is not None:
        assert len(samples) == len(truth)
        for sample, row in zip(samples, truth, strict=True):
            compare(sample, row, fields)
    return ask(random, samples)


def make_rows(random: Random) -> list[Row]:
    """Up to four rows of one kind; often with one value that is none, or a field too many or too few."""
    completion = random.random() < 0.4
    rows: list[Row] = []
    for _ in range(random.randint(1, 4)):
        row: Row = {"prompt": text(random), "n": random.choice((1, 2.5, "x")), "0": text(random)}
        if completion:
            row["completion"] = text(random, 3)
        else:
            row["choices"] = [text(random, 2) for _ in range(random.randint(2, 3))]
            row["label"] = random.randrange(len(row["choices"]))
        if random.random() < 0.2:
            row["delimiter"] = random.choice(("", " ", "\n", ": "))
        if random.random() < 0.2:
            row["group"] = random.choice((1, "g", None))
        rows.append(row)
    if random.random() < 0.4:
        row = random.choice(rows)
        name = random.choice((*row, "completion", "choices", "label", "group", "delimiter", "0"))
        if random.random() < 0.2:
            row.pop(name, None)
        else:
            row[name] = random.choice(JUNK)
    return rows


def write_jsonl(random: Random, rows: list[Row]) -> tuple[bytes, None]:
    """Each in a line, sometimes with a field twice."""
    lines = []
    for row in rows:
        pairs = [f"{json.dumps(name)}: {dumped(value)}" for name, value in row.items()]
        if random.random() < 0.05:
            pairs.append(random.choice(pairs))
        lines.append("{" + ", ".join(pairs) + "}")
    ends = random.choice(("\n", "\n", "\r\n", "\n\n"))
    return (random.choice(("", "", "\ufeff")) + ends.join(lines) + ends).encode(), None


def dumped(value: object) -> str:
    """As JSON, also what Python would not write out."""
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) > 10**9:
        return "1" + "0" * 5000
    if value is DEEP:
        return "[" * 20000 + "]" * 20000
    return json.dumps(value)


def read_jsonl(content: bytes) -> list[Row]:
    """What it says, by the standard library; a field that stands twice is a fault here."""

    def once(pairs: list[tuple[str, Any]]) -> Row:
        assert len(dict(pairs)) == len(pairs), "a field twice"
        return dict(pairs)

    lines = io.StringIO(content.decode("utf-8-sig"), newline=None).read().split("\n")
    return [json.loads(line, object_pairs_hook=once) for line in lines if line.strip()]


def write_csv(random: Random, rows: list[Row]) -> tuple[bytes, None]:
    """With a header, in which a name may stand twice."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    if random.random() < 0.05:
        names.append(random.choice(names))
    stream = io.StringIO()
    writer = csv.writer(stream)
    writer.writerow(names)
    for row in rows:
        values = (row.get(name) for name in names)
        writer.writerow("" if v is None else json.dumps(v) if isinstance(v, list | dict) else short(v) for v in values)
    return stream.getvalue().encode(errors="surrogatepass"), None


def short(value: object) -> str:
    return "9" * 5000 if isinstance(value, int) and abs(value) > 10**9 else str(value)


def read_csv(content: bytes) -> list[Row]:
    """What it says, by the standard library's lists."""
    header, *rows = [row for row in csv.reader(io.StringIO(content.decode("utf-8-sig"), newline="")) if row]
    named = [name for name in header if name]
    assert len(set(named)) == len(named), "a field twice"
    return [{name: value or None for name, value in zip(header, row, strict=True)} for row in rows]


def write_parquet(random: Random, rows: list[Row]) -> tuple[bytes, list[Row] | None]:
    """With fields of any type beside; what no column can hold is left out."""
    columns = {}
    for name in dict.fromkeys(name for row in rows for name in row):
        try:
            columns[name] = pyarrow.array([row.get(name) for row in rows])
        except (pyarrow.ArrowException, OverflowError, UnicodeEncodeError):
            continue
    if random.random() < 0.3:
        pairs = pyarrow.map_(pyarrow.string(), pyarrow.int64())
        columns[random.choice(("meta", "prompt", "group"))] = pyarrow.array([[("a", 1)] for _ in rows], pairs)
    stream = io.BytesIO()
    table = pyarrow.table(columns) if columns else pyarrow.table({"x": [1]})
    try:
        write_table(table, stream)
    except pyarrow.ArrowException as error:
        raise Refused("no parquet file") from error
    return stream.getvalue(), table.to_pylist()


WRITERS: dict[str, Callable[[Random, list[Row]], tuple[bytes, list[Row] | None]]] = {
    ".jsonl": write_jsonl,
    ".csv": write_csv,
    ".parquet": write_parquet,
}
READERS = {".jsonl": read_jsonl, ".csv": read_csv}


def damaged(random: Random, content: bytes) -> bytes:
    """Cut, changed, doubled, or in another encoding."""
    place = random.randrange(len(content) + 1)
    kind = random.randrange(6)
    if kind == 0:
        return content[:place]
    if kind == 1:
        return content[:place] + bytes([random.randrange(256)]) + content[place + 1 :]
    if kind == 2:
        return content[:place] + content[place // 2 :]
    if kind == 3:
        return content.decode(errors="replace").encode("utf-16")
    if kind == 4:
        return content[:place] + random.choice((b'"', b"\\", b"\n", b",", b"{", b"\x00", b"\xff")) + content[place:]
    return random.choice((b"", b"\n\n", b"[]", b"{}", b"null", b"PAR1", b"\xff\xfe"))


def compare(sample: Sample, row: Row, fields: Fields) -> None:
    """Whether a sample says what its row does."""
    absent = {name for name, value in row.items() if value is None or value != value}  # NaN is not itself
    parts = {"{prompt}": ("prompt",), "{prompt}{n}": ("prompt", "n"), "{0}": ("0",), "Q: {n}\nA:": ("n",)}[
        fields.prompt
    ]
    texts = {name: "" if name in absent else str(row[name]) for name in parts}
    expected = fields.prompt
    for name, value in texts.items():
        expected = expected.replace(f"{{{name}}}", value, 1) if len(parts) == 1 else expected
    assert sample.prompt == (expected if len(parts) == 1 else "".join(texts.values()))
    given = {name: value for name, value in row.items() if name not in absent}
    if "choices" in given:
        choices = json.loads(given["choices"]) if isinstance(given["choices"], str) else given["choices"]
        label = given["label"]
        assert list(sample.choices) == choices
        assert label == choices[sample.label] or int(label) == sample.label
    else:
        assert sample.completion == str(given["completion"])
    assert sample.group == (str(given["group"]) if "group" in given else None)
    assert sample.delimiter == given.get("delimiter")


@torch.no_grad()
def ask(random: Random, samples: list[Sample]) -> str:
    """Ask a model in some way; the last answer is measured as its row alone gives it."""
    architecture = random.choice(sorted(PARTS))
    model, tokenizer = language_model(architecture, random.choice((0, 0, 0, 2)))
    tokenizer.chat_template = random.choice((None, *TEMPLATES))
    options = {"delimiter": random.choice((" ", " ", "", "\n", "\x00")), "chat": random.random() < 0.15}
    if samples[0].completion is not None:
        match = random.choice(("tokens", "tokens", "text", "contains", "contains-with-prompt"))
        window = random.randint(1, 4) if match.startswith("contains") else 0
        samples = [Sample(**(vars(sample) | {"match": match, "window": window})) for sample in samples]
    encoded = attempt(lambda: EncodedSamples(samples, model=model, tokenizer=tokenizer, batch_size=2, **options))
    str(encoded.asked)
    measured = attempt(lambda: evaluate(model, encoded))
    assert measured.n == len(samples)
    assert math.isfinite(measured.log_loss)
    assert 0 <= measured.accuracy <= 1
    assert measured.warning is None or measured.accuracy == 0
    answer = encoded.table.answers[-1]
    inputs = {"input_ids": torch.tensor([answer.row])}
    if answer.decoder:
        inputs["decoder_input_ids"] = torch.tensor([answer.decoder])
    log_probs = model(**inputs).logits[0].log_softmax(-1)
    alone = sum(log_probs[answer.start + i, token].item() for i, token in enumerate(answer.tokens))
    batched = encoded.table.per_answer(encoded.read(model).log_probs)[-1]
    assert abs(alone - batched) <= 1e-3 * (1 + abs(alone)), (alone, batched)
    return "read"
