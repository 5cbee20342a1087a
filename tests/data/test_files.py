"""Rows become samples, or the first bad one is named by file, line and field."""

import json

import numpy as np
import pandas
import pytest

from lasertri import Fields, LasertriError, Sample, as_samples


def write(path, *rows):
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


GOOD = {"prompt": "a b", "choices": ["yes", "no"], "label": 1}


def test_choices_completions_and_groups_are_read(tmp_path):
    assert as_samples(write(tmp_path / "x.jsonl", GOOD | {"group": 7})) == [
        Sample("a b", choices=("yes", "no"), label=1, group="7")
    ]
    assert as_samples(write(tmp_path / "y.jsonl", {"prompt": "a", "completion": "b"})) == [Sample("a", "b")]


def test_templates_over_other_fields(tmp_path):
    path = write(tmp_path / "x.jsonl", {"question": "why", "n": 3, "options": ["b", "c"], "answer": "c", "id": "q1"})
    fields = Fields("Q{n}: {question}\nA:", choices="options", label="answer", group="id")
    assert as_samples(path, fields) == [Sample("Q3: why\nA:", choices=("b", "c"), label=1, group="q1")]


def test_choices_that_all_rows_share(tmp_path):
    path = write(tmp_path / "x.jsonl", {"prompt": "a", "label": "no"})
    assert as_samples(path, Fields(choices='["yes", "no"]'))[0].label == 1


@pytest.mark.parametrize(
    ("choices", "labels", "expected"),
    [
        ('["x", "y"]', "1 0 1", [1, 0, 1]),
        ('["x", "y"]', "y x y", [1, 0, 1]),
        ('["0", "1"]', "1 0 1", [1, 0, 1]),
        ('["1", "2"]', "2 1 2", [1, 0, 1]),
    ],
)
def test_csv_labels_are_indices_or_texts(tmp_path, choices, labels, expected):
    path = tmp_path / "x.csv"
    path.write_text("prompt,label\n" + "".join(f'"a, b",{label}\n' for label in labels.split()))
    assert [s.label for s in as_samples(path, Fields(choices=choices))] == expected


@pytest.mark.parametrize("labels", ["0 1", "1 0", "1 2 0", "0 y"])
def test_csv_labels_that_are_now_indices_now_texts_are_refused(tmp_path, labels):
    path = tmp_path / "x.csv"
    path.write_text("prompt,label\n" + "".join(f"a,{label}\n" for label in labels.split()))
    with pytest.raises(LasertriError, match="use indices or texts throughout"):
        as_samples(path, Fields(choices='["1", "2", "y"]'))


def test_empty_csv_cells_are_absent(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text("prompt,choices,label,completion,group\na,,,b,\nc,,,d,g\n")
    assert as_samples(path) == [Sample("a", "b"), Sample("c", "d", group="g")]


def test_a_group_field_that_no_row_has_is_refused(tmp_path):
    with pytest.raises(LasertriError, match="expected a field 'topic' in some row.*--group"):
        as_samples(write(tmp_path / "x.jsonl", GOOD), Fields(group="topic"))


@pytest.mark.parametrize("template", ["question", "{", "{question:d}", "{question!r}", "{a.b}", "{a[0]}", "{}"])
def test_templates_that_are_none_are_refused(template):
    with pytest.raises(LasertriError, match="template"):
        Fields(prompt=template)


def test_fields_may_have_any_name_and_braces_are_doubled(tmp_path):
    path = write(tmp_path / "x.jsonl", {"Best Answer": "b", "q": "a"})
    assert as_samples(path, Fields("{{{q}}}", completion="{Best Answer}")) == [Sample("{a}", "b")]


def test_parquet(tmp_path):
    from datasets import Dataset

    Dataset.from_list([GOOD]).to_parquet(tmp_path / "x.parquet")
    assert as_samples(tmp_path / "x.parquet") == [Sample("a b", choices=("yes", "no"), label=1)]


def test_without_the_extra_a_parquet_file_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    (tmp_path / "x.parquet").touch()
    with pytest.raises(LasertriError, match=r"expected a jsonl or csv file.*pip install 'lasertri\[datasets\]'"):
        as_samples(tmp_path / "x.parquet")


def test_a_data_frame(tmp_path):
    frame = pandas.DataFrame([GOOD, GOOD | {"group": "g"}])
    expected = [Sample("a b", choices=("yes", "no"), label=1, group=group) for group in (None, "g")]
    assert as_samples(frame) == expected
    frame.to_parquet(tmp_path / "x.parquet")
    assert as_samples(pandas.read_parquet(tmp_path / "x.parquet")) == expected


def test_rows_and_samples_from_python():
    sample = Sample("a b", choices=("yes", "no"), label=1)
    assert as_samples([GOOD]) == as_samples([sample]) == [sample]
    with pytest.raises(LasertriError, match="row 2, prompt"):
        as_samples([GOOD, GOOD | {"prompt": ""}])


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ("", "expected rows with a prompt and an answer, got none"),
        ({"choices": ["a", "b"], "label": 0}, r"bad.jsonl:1: expected a field 'prompt'.*got \['choices', 'label'\]"),
        ({"prompt": "a", "choices": ["a", "b"]}, "bad.jsonl:1: expected a field 'label'"),
        ({"prompt": "a", "text": "b"}, "bad.jsonl:1: expected a field 'choices' or 'completion'.*--choices"),
        (GOOD | {"label": 2}, "bad.jsonl:1, label: expected an index from 0 to 1.*got 2"),
        (GOOD | {"label": -1}, "bad.jsonl:1, label"),
        (GOOD | {"label": True}, "bad.jsonl:1, label.*got True"),
        (GOOD | {"label": None}, "bad.jsonl:1, label.*got None"),
        (GOOD | {"label": "maybe"}, "bad.jsonl:1, label.*got 'maybe'"),
        (GOOD | {"choices": ["yes"], "label": 0}, "bad.jsonl:1, choices: expected at least two"),
        (GOOD | {"choices": ["yes", "yes"]}, "bad.jsonl:1, choices: expected at least two different"),
        (GOOD | {"choices": ["yes", 3]}, "bad.jsonl:1, choices: expected a list of texts"),
        (GOOD | {"choices": "yes or no"}, "bad.jsonl:1, choices: expected a list of texts"),
        (GOOD | {"prompt": None}, "bad.jsonl:1, prompt: expected text, got None"),
        (GOOD | {"prompt": "  "}, "bad.jsonl:1, prompt: expected text"),
        ({"prompt": "a", "completion": ""}, "bad.jsonl:1, completion: expected text"),
        ('{"prompt": ', "bad.jsonl:1: expected one JSON object a line"),
        ('["prompt"]', "bad.jsonl:1: expected an object"),
    ],
)
def test_a_bad_row_is_named(tmp_path, bad, message):
    with pytest.raises(LasertriError, match=message):
        as_samples(write(tmp_path / "bad.jsonl", bad))


def test_mixed_types_of_labels_are_refused(tmp_path):
    path = write(tmp_path / "x.jsonl", GOOD, GOOD | {"label": "no"})
    with pytest.raises(LasertriError, match="x.jsonl:2, label: expected an index as in the rows before, got 'no'"):
        as_samples(path)


def test_mixed_kinds_of_rows_are_refused(tmp_path):
    path = write(tmp_path / "x.jsonl", GOOD, {"prompt": "a", "completion": "b"})
    with pytest.raises(LasertriError, match="x.jsonl:2: expected choices in all rows or in none"):
        as_samples(path)


def test_line_numbers_count_blank_and_quoted_lines(tmp_path):
    with pytest.raises(LasertriError, match="x.jsonl:3"):
        as_samples(write(tmp_path / "x.jsonl", GOOD, "", GOOD | {"label": 9}))
    path = tmp_path / "x.csv"
    path.write_text('prompt,completion\n"two\nlines",b\n ,b\n')
    with pytest.raises(LasertriError, match="x.csv:4, prompt"):
        as_samples(path)


def test_a_ragged_csv_row_is_named(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text("prompt,completion\na,b\na,b,c\n")
    with pytest.raises(LasertriError, match="x.csv:3: expected 2 fields"):
        as_samples(path)


DEEP = "[" * 100_000 + "]" * 100_000
BESIDE = '{"prompt": "a", "completion": "b", "n": '


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (
            "x.csv",
            "prompt,completion,prompt\na,b,c\n",
            "x.csv:1: expected every field once in the header, got",
        ),
        ("x.jsonl", '{"prompt": "a", "completion": "b", "prompt": "c"}', "x.jsonl:1: .*got the field 'prompt' twice"),
        (
            "x.jsonl",
            f"{BESIDE}{'7' * 5000}}}",
            "x.jsonl:1: .*, got an integer of 5,000 digits",
        ),
        ("x.jsonl", f"{BESIDE}{DEEP}}}", "x.jsonl:1: .*got lists or objects too deep in each other"),
        ("x.jsonl", r'{"prompt": "a \ud83d", "completion": "b"}', r"x.jsonl:1, prompt: .*lone surrogate '\\ud83d'"),
        ("x.jsonl", r'{"prompt": "a", "completion": "\udc00"}', r"x.jsonl:1, completion: .*lone surrogate"),
        (
            "x.jsonl",
            r'{"prompt": "a", "choices": ["b", "\ud800"], "label": 0}',
            "x.jsonl:1, choices: .*surrogate",
        ),
        ("x.jsonl", '{"prompt": NaN, "completion": "b"}', "x.jsonl:1, prompt: expected text, got None"),
        ("x.jsonl", '{"prompt": -Infinity, "completion": "b"}', "x.jsonl:1, prompt: expected text, got -inf"),
        ("x.jsonl", '{"prompt": "a", "choices": ["b", "c"], "label": NaN}', "x.jsonl:1, label: expected an index"),
        ("x.csv", f'prompt,choices,label\na,"[""b"", ""c""]",{"1" * 5000}\n', "x.csv:2, label: expected an index"),
        ("x.csv", f"prompt,choices,label\na,{'[' * 99_999},1\n", "x.csv:2, choices: expected a list of texts"),
    ],
    ids=range(12),
)
def test_what_no_text_or_number_can_be_made_of_is_named_in_a_sentence(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(LasertriError, match=message) as caught:
        as_samples(tmp_path / name)
    assert len(str(caught.value)) < 600


def test_a_python_integer_beyond_what_is_written_out_is_named():
    for row in ({"prompt": 10**5000, "completion": "b"}, GOOD | {"label": 10**5000}, GOOD | {"group": 10**5000}):
        with pytest.raises(LasertriError, match="row 1, .*something too large to show"):
            as_samples([row])


@pytest.mark.parametrize("absent", [{}, {"choices": None, "label": None}, {"choices": float("nan"), "group": np.nan}])
def test_what_is_null_or_nan_is_absent(absent):
    assert as_samples([{"prompt": "a", "completion": "b"} | absent]) == [Sample("a", "b")]


def test_one_field_of_a_template_may_be_empty_and_not_all(tmp_path):
    fields, path = Fields("{context}{question}"), tmp_path / "x.csv"
    path.write_text("context,question,completion\n,why,b\nbut ,why,b\n")
    assert [sample.prompt for sample in as_samples(path, fields)] == ["why", "but why"]
    rows = [{"context": None, "question": "why", "completion": "b"}]
    assert as_samples(rows, fields) == [Sample("why", "b")]
    with pytest.raises(LasertriError, match="row 1, context: expected text, got None"):
        as_samples([{"context": None, "question": "", "completion": "b"}], Fields("Q: {context}{question}\nA:"))


def test_fields_may_be_numbered(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text("0,1\na,b\n")
    assert as_samples(path, Fields("{0}", completion="{1}")) == [Sample("a", "b")]


def test_a_row_may_have_its_own_delimiter(tmp_path):
    row = {"prompt": "a", "completion": "b"}
    rows = [row | {"delimiter": ""}, row | {"delimiter": "\n"}, row | {"delimiter": None}, row]
    assert [sample.delimiter for sample in as_samples(write(tmp_path / "x.jsonl", *rows))] == ["", "\n", None, None]
    with pytest.raises(LasertriError, match="row 1, delimiter: expected text, got 3"):
        as_samples([row | {"delimiter": 3}])


def test_parquet_fields_of_any_type_may_stand_beside(tmp_path):
    import pyarrow
    from pyarrow.parquet import write_table

    pairs = pyarrow.array([[("a", 1)]], pyarrow.map_(pyarrow.string(), pyarrow.int64()))
    columns = {"prompt": ["a"], "completion": ["b"], "meta": pairs, "raw": [b"\xff"], "choices": [None]}
    write_table(pyarrow.table(columns), tmp_path / "x.parquet")
    assert as_samples(tmp_path / "x.parquet") == [Sample("a", "b")]
    for field, value in (("meta", r"\[\('a', 1\)\]"), ("raw", r"b'\\xff'")):
        with pytest.raises(LasertriError, match=f"x.parquet:1, {field}: expected text, got {value}"):
            as_samples(tmp_path / "x.parquet", Fields(prompt=f"{{{field}}}"))
    twice = pyarrow.Table.from_arrays([pyarrow.array(["a"])] * 3, names=["prompt", "completion", "prompt"])
    write_table(twice, tmp_path / "y.parquet")
    with pytest.raises(LasertriError, match="y.parquet: expected every field once, got 'prompt' twice"):
        as_samples(tmp_path / "y.parquet")


def test_samples_from_python_are_checked_too():
    assert Sample("a", choices=["x", "y"], label=np.int64(1)).choices == ("x", "y")
    for label in (True, None, "x", 2):
        with pytest.raises(LasertriError, match="label"):
            Sample("a", choices=("x", "y"), label=label)
    with pytest.raises(LasertriError, match="list of texts"):
        Sample("a", choices="xy", label=0)
    with pytest.raises(LasertriError, match="choices in all rows or in none"):
        as_samples([Sample("a", "b"), Sample("a", choices=("x", "y"), label=0)])


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ({"match": "regex"}, r"match: expected one of \['tokens', 'text', .*got 'regex'"),
        ({"match": "contains"}, "window: expected a number of tokens to write.*'contains', got 0"),
        ({"match": "contains-with-prompt", "window": -1}, "window: expected a number of tokens"),
        ({"match": "contains", "window": 2.5}, "window: expected a number of tokens.*got 2.5"),
        ({"match": "contains", "window": True}, "window: expected a number of tokens.*got True"),
        ({"match": "text", "window": 3}, "window: expected 0, no text is written, with match 'text', got 3"),
        ({"window": 3}, "window: expected 0"),
    ],
)
def test_rules_for_completions_are_checked(rule, message):
    for make in (lambda: Sample("a", "b", **rule), lambda: Fields(**rule)):
        with pytest.raises(LasertriError, match=message):
            make()


def test_one_rule_for_all_completions_of_a_file(tmp_path):
    path, fields = write(tmp_path / "x.jsonl", {"prompt": "a", "completion": "b"}), Fields(match="contains", window=15)
    assert as_samples(path, fields) == [Sample("a", "b", match="contains", window=15)]
    with pytest.raises(LasertriError, match="y.jsonl:1, match: expected a completion for 'contains', got choices"):
        as_samples(write(tmp_path / "y.jsonl", GOOD), fields)


def test_files_that_cannot_be_read(tmp_path):
    (tmp_path / "x.parquet").write_text("not one")
    with pytest.raises(LasertriError, match="expected a parquet file"):
        as_samples(tmp_path / "x.parquet")
    (tmp_path / "x.csv").write_text('prompt,completion\n"a,b\n')
    with pytest.raises(LasertriError, match="x.csv:2: expected comma-separated values"):
        as_samples(tmp_path / "x.csv")
    with pytest.raises(LasertriError, match="found none there"):
        as_samples(tmp_path / "absent.jsonl")
    with pytest.raises(LasertriError, match="File name too long"):
        as_samples(tmp_path / f"{'x' * 999}.jsonl")
    for nothing in (5, None, 0.5):
        with pytest.raises(LasertriError, match=f"expected samples, rows, or the path of a file .*, got {nothing}"):
            as_samples(nothing)
    with pytest.raises(LasertriError, match="ends in .jsonl"):
        as_samples(write(tmp_path / "x.txt", "a"))
    (tmp_path / "x.jsonl").write_bytes(b"\xff\xfe")
    with pytest.raises(LasertriError, match="expected UTF-8"):
        as_samples(tmp_path / "x.jsonl")
