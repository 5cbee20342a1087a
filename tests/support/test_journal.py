"""Records outlive the process that made them, are never wrong, and never in the way."""

import errno
import logging
import pickle
from contextlib import contextmanager

import pytest
import torch
from killing import WHENS, Killer

from lasertri.support import journal
from lasertri.support.journal import NOTHING, Journal

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.int64, torch.bool)


@pytest.fixture
def made():
    """How often something was made."""
    return []


def opened(folder, about="work", **options):
    return Journal.open(folder, about, **options)


def numbers(made, start=0.0, count=3):
    made.append(start)
    return [torch.arange(count) + start, torch.tensor([start])]


def kept(folder, made, names="abc", **options):
    """The records of these names, which count up."""
    with opened(folder, **options) as records:
        return [records.of(name, lambda name=name: numbers(made, float(ord(name)))) for name in names]


def assert_right(records, names="abc"):
    for (first, second), name in zip(records, names, strict=True):
        assert torch.equal(first, torch.arange(3) + float(ord(name)))
        assert second.tolist() == [ord(name)]


def files(folder):
    return sorted(folder.iterdir())


def test_what_was_made_is_not_made_again(tmp_path, made, caplog):
    caplog.set_level(logging.INFO)
    kept(tmp_path / "new", made)
    assert not caplog.text
    assert_right(kept(tmp_path / "new", made))
    assert len(made) == 3
    assert (
        "going on where this was stopped: 1 s of a, b and c are there already; --no-resume begins anew" in caplog.text
    )


@pytest.mark.parametrize(
    "options", [{"about": "other work"}, {"about": {"work": 1}}, {"resume": False}], ids=["text", "json", "anew"]
)
def test_other_work_finds_nothing(tmp_path, made, options):
    kept(tmp_path, made)
    kept(tmp_path, made, **options)
    assert len(made) == 6


@pytest.mark.parametrize("name", journal.VERSIONS)
def test_another_version_finds_nothing(tmp_path, made, monkeypatch, name):
    kept(tmp_path, made)
    versions = journal.environment()
    monkeypatch.setattr(journal, "environment", lambda: versions | {name: "0.0"})
    kept(tmp_path, made)
    assert len(made) == 6


def test_records_are_known_by_all_that_they_depend_on(tmp_path, made):
    places = [lambda records, i=i: records.under("a", [i]) for i in range(2)] + [lambda r: r.under("a"), lambda r: r]
    for _ in range(2):
        with opened(tmp_path) as records:
            for i, place in enumerate(places):
                for about in ("x", ("x", 1), ("x", 2)):
                    assert place(records).of(about, lambda i=i: numbers(made, float(i)))[1].tolist() == [i]
    assert len(made) == 12


@pytest.mark.parametrize("dtype", DTYPES)
def test_records_come_back_bit_for_bit_and_lie_in_memory_of_their_own(tmp_path, dtype):
    torch.manual_seed(0)
    whole = (torch.randn(6, 5) * 3).to(dtype)
    given = [whole.mT, whole[1:3, ::2], whole[:0], whole[0, 0]]
    with opened(tmp_path) as records:
        first = records.keep("x", given)
    with opened(tmp_path) as records:
        second = records.recall("x")
    for record in (first, second, NOTHING.keep("x", given)):
        assert all(a.dtype == dtype and torch.equal(a, b) for a, b in zip(record, given, strict=True))
        assert all(tensor.is_contiguous() and tensor.storage_offset() == 0 for tensor in record)
    assert not any(a.untyped_storage().data_ptr() == whole.untyped_storage().data_ptr() for a in first)


def test_nothing_is_known_or_kept_without_a_folder(made):
    assert [NOTHING.of("x", lambda: numbers(made)) for _ in range(2)]
    assert NOTHING.recall("x") is None
    NOTHING.delete()
    with NOTHING as same:
        assert same is NOTHING
    assert len(made) == 2
    assert pickle.loads(pickle.dumps(NOTHING)).recall("x") is None


def test_a_context_is_entered_for_what_is_made_alone_once_and_left(tmp_path, made):
    seen = []

    @contextmanager
    def entered(name):
        seen.append(name)
        yield
        seen.append(f"left {name}")

    def work(names):
        with opened(tmp_path) as records, records.under("s").within(entered("outer")) as outer:
            with outer.within(entered("inner")) as inner:
                for name in names:
                    inner.under("deep").of(name, lambda: seen.append("make") or numbers(made))
            seen.append("between")

    work("ab")
    assert seen == ["outer", "inner", "make", "make", "left inner", "between", "left outer"]
    seen.clear()
    work("ab")
    assert seen == ["between"]
    seen.clear()
    work("abc")
    assert seen == ["outer", "inner", "make", "left inner", "between", "left outer"]


def test_the_clock_goes_on_as_if_nothing_had_been_recalled(tmp_path, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(journal.time, "perf_counter", lambda: now[0])

    def make(seconds):
        now[0] += seconds
        return [torch.zeros(1)]

    def work():
        with opened(tmp_path) as records:
            start = records.now()
            records.of("x", lambda: make(3.0))
            now[0] += 0.5
            records.of("y", lambda: make(4.0))
            return records.now() - start

    assert work() == 7.5
    assert work() == 7.5  # 0.5 seconds of which were spent


def test_files_are_written_now_and_then_and_at_the_end_whatever_it_is(tmp_path, made, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(journal.time, "perf_counter", lambda: now[0])
    with pytest.raises(KeyboardInterrupt), opened(tmp_path) as records:
        for i, seconds in enumerate([4.0, 4.0, 4.0, 4.0]):
            now[0] += seconds
            records.of(i, lambda: numbers(made))
            assert len(files(tmp_path)) == (i >= 2)
        raise KeyboardInterrupt
    assert len(files(tmp_path)) == 2
    with opened(tmp_path) as records:
        assert all(records.recall(i) for i in range(4))


@pytest.mark.parametrize("when", WHENS)
def test_a_process_that_is_killed_loses_the_record_that_it_was_writing_at_most(tmp_path, made, monkeypatch, when):
    killer = Killer(monkeypatch)
    at = 1 if when == "after" else 2
    records, times = killer.until_it_ends(lambda: kept(tmp_path, made, "abcd"), at, when)
    assert_right(records, "abcd")
    assert times == (4 if when == "after" else 3)
    assert len(made) == (4 if when == "after" else 7)
    opened(tmp_path).delete()
    assert files(tmp_path) == []  # torn ones too


def damages(content):
    yield b""
    yield content[: len(content) // 2]
    yield content[:-1]
    yield content + b"\0"
    for place in range(0, len(content), max(1, len(content) // 50)):
        yield content[:place] + bytes([content[place] ^ 1 << place % 8]) + content[place + 1 :]


def test_a_damaged_file_is_never_believed(tmp_path, made, caplog):
    kept(tmp_path, made)
    [path] = files(tmp_path)
    content = path.read_bytes()
    for damaged in damages(content):
        path.write_bytes(damaged)
        before = len(made)
        assert_right(kept(tmp_path, made))
        if len(made) > before:
            assert not path.exists()
        for other in files(tmp_path):
            other.unlink()
    assert len(made) > 50
    assert f"{path}: expected a journal as it was written, got a damaged file; its part is done again" in caplog.text


def test_a_file_under_the_name_of_another_journal_is_not_believed(tmp_path, made):
    kept(tmp_path, made)
    [path] = files(tmp_path)
    kept(tmp_path, made, "d", about="other work")
    [other] = set(files(tmp_path)) - {path}
    path.replace(other)
    kept(tmp_path, made, about="other work")
    assert len(made) == 7


def test_a_file_that_vanishes_meanwhile_is_made_again(tmp_path, made, caplog):
    kept(tmp_path, made)
    records = opened(tmp_path)
    for path in files(tmp_path):
        path.unlink()
    caplog.clear()
    assert records.recall("a") is None
    assert not caplog.text


def test_a_file_that_cannot_be_read_now_is_left_for_the_next_time(tmp_path, made, monkeypatch):
    kept(tmp_path, made)
    listed, safe_open = opened(tmp_path), journal.safe_open

    def busy(*_, **__):
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(journal, "safe_open", busy)
    assert listed.recall("a") is None
    assert opened(tmp_path).recall("a") is None
    monkeypatch.setattr(journal, "safe_open", safe_open)
    assert_right(kept(tmp_path, made))
    assert len(made) == 3


def test_no_more_than_so_many_bytes_wait_in_memory(tmp_path, made, monkeypatch):
    monkeypatch.setattr(journal, "HELD", 48)  # a record has 16 bytes
    with opened(tmp_path) as records:
        found = []
        for name in "abcd":
            found.append(records.of(name, lambda name=name: numbers(made, float(ord(name)))))
            assert len(files(tmp_path)) == (len(found) >= 3)
    assert_right(kept(tmp_path, made, names="abcd"), names="abcd")
    assert len(made) == 4


def test_a_journal_is_deleted_alone(tmp_path, made):
    kept(tmp_path, made)
    kept(tmp_path, made, about="other work")
    (tmp_path / "mine.safetensors").touch()
    opened(tmp_path).delete()
    assert len(files(tmp_path)) == 2
    kept(tmp_path, made, about="other work")
    assert len(made) == 6


def test_a_disk_that_fails_is_said_once_and_costs_nothing_else(tmp_path, made, monkeypatch, caplog):
    monkeypatch.setattr(journal, "EVERY", 0)

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(journal, "replace_file", full)
    assert_right(kept(tmp_path, made))
    assert caplog.text.count("expected a folder for a journal, going on without: [Errno 28]") == 1
    (tmp_path / "file").touch()
    assert_right(kept(tmp_path / "file", made))  # where no folder can be
