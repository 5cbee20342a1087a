"""Values and errors of elsewhere, in one line of bearable length."""

import pytest

from lasertri.support.shown import CHARACTERS, LONGEST, failure, listed, printable, readable, reason, shown


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


def test_what_a_terminal_would_obey_is_written_out():
    assert printable("a\x1b[31mb\x07\x9b\r\u202e") == r"a\x1b[31mb\x07\x9b\r\u202e"
    assert printable("σ·2 → ü 日本 👩\u200d👧\tend\n") == "σ·2 → ü 日本 👩\u200d👧\tend\n"


def test_a_message_is_of_three_lines_at_most():
    assert readable("one\ntwo\nthree") == "one\ntwo\nthree"
    assert readable("1\n2\n3\n4") == "1\n2\n3 …"
    assert len(readable("x" * 25456)) == CHARACTERS


def test_a_long_list_is_cut():
    assert listed("abc") == "a, b, c"
    assert listed(map(str, range(100)), most=3, between="; ") == "0; 1; 2; and 97 more"
