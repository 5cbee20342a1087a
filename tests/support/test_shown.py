"""Values and errors of elsewhere, in one line of bearable length."""

import pytest

from lasertri.support.shown import LONGEST, failure, reason, shown


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (ValueError("no such\n  thing."), "no such thing"),
        (ValueError(), "ValueError"),
        (KeyError("gelu2"), "KeyError 'gelu2'"),
        (ZeroDivisionError("division by zero"), "ZeroDivisionError division by zero"),
        (TypeError("Validation error for LlamaConfig: heads: expected int"), "expected int"),
    ],
)
def test_what_an_error_says_and_its_kind_where_that_is_little(error, text):
    assert reason(error) == text


def test_of_a_file_that_fails_its_name_is_left_out():
    assert failure(FileNotFoundError(2, "No such file", "/a/b")) == "No such file"
    assert failure(OSError("disk full")) == "disk full"


def test_what_is_long_is_cut():
    assert len(shown("x" * 999)) == LONGEST
    assert reason(ValueError("word " * 99)) == "word " * (LONGEST // 5) + "…"
    assert shown("two\nlines") == r"'two\nlines'"
    assert shown(10**9999) == "something too large to show (int)"
