"""A folder appears whole or not at all."""

import os

import pytest
import safetensors.torch
import torch

from lasertri import LasertriError
from lasertri.support.atomic_files import check_writable, replace_file, whole_directory, write_whole


def test_a_folder_appears_when_it_is_complete(tmp_path):
    with whole_directory(tmp_path / "a" / "out") as folder:
        (folder / "x").write_text("1")
        assert not (tmp_path / "a" / "out").exists()
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["out"]


def test_others_may_read_what_was_written(tmp_path):
    with whole_directory(tmp_path / "out") as folder:
        safetensors.torch.save_file({"x": torch.ones(1)}, folder / "x")
    assert {p.stat().st_mode & 0o444 for p in (tmp_path / "out", tmp_path / "out" / "x")} == {0o444}


def test_looking_leaves_nothing_behind(tmp_path):
    check_writable(tmp_path / "a" / "b" / "out")
    assert not list(tmp_path.iterdir())


def test_a_failure_leaves_what_was_there(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "old").write_text("1")
    with pytest.raises(ZeroDivisionError), whole_directory(out, overwrite=True) as folder:
        (folder / "new").write_text("2")
        raise ZeroDivisionError
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    assert [p.name for p in out.iterdir()] == ["old"]


def test_overwriting_replaces_the_whole_folder(tmp_path):
    for name in ("old", "new"):
        with whole_directory(tmp_path / "out", overwrite=name == "new") as folder:
            (folder / name).write_text("1")
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["new"]
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "file.json"
    for text in ("old", "new"):
        write_whole(path, text)
    assert path.read_text() == "new"

    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(LasertriError, match=r"file.json: expected .* written: No space"):
        write_whole(path, "newer")
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_an_unwritable_folder_is_found_out_at_once(tmp_path):
    (tmp_path / "file").write_text("1")
    with pytest.raises(LasertriError, match="expected a folder that can be written"):
        check_writable(tmp_path / "file" / "out")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").write_text("1")
    with pytest.raises(LasertriError, match="new or empty folder.*--overwrite"):
        check_writable(tmp_path / "full")
    with pytest.raises(LasertriError, match="of free disk"):
        check_writable(tmp_path / "out", needed=1 << 60)


def test_what_is_to_last_reaches_the_disk_before_it_appears(tmp_path, monkeypatch):
    seen, sync = [], os.fsync
    monkeypatch.setattr(os, "fsync", lambda file: seen.append((tmp_path / "x").exists()) or sync(file))
    replace_file(tmp_path / "x", b"1")
    assert seen == []
    (tmp_path / "x").unlink()
    replace_file(tmp_path / "x", b"2", durable=True)
    assert seen == [False]
    assert (tmp_path / "x").read_bytes() == b"2"
