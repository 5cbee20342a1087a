"""A file appears whole or not at all."""

import os

import pytest

from lasertri import LasertriError
from lasertri.support.atomic_files import replace_file, write_whole


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "a" / "file.json"
    for text in ("old", "new"):
        write_whole(path, text)
    assert path.read_text() == "new"

    def full(*arguments):
        raise OSError(28, "No space left on device")

    for name in ("replace", "fsync", "mkdir"):
        with monkeypatch.context() as patched:
            patched.setattr(os, name, full)
            with pytest.raises(LasertriError, match=r"file.json: expected .* written: .*No space"):
                write_whole(path, "newer")
    assert path.read_text() == "new"
    assert list(path.parent.iterdir()) == [path]


def test_what_is_to_last_reaches_the_disk_before_it_appears(tmp_path, monkeypatch):
    seen, sync = [], os.fsync
    monkeypatch.setattr(os, "fsync", lambda file: seen.append((tmp_path / "x").exists()) or sync(file))
    replace_file(tmp_path / "x", b"1")
    assert seen == []
    (tmp_path / "x").unlink()
    replace_file(tmp_path / "x", b"2", durable=True)
    assert seen == [False]
    assert (tmp_path / "x").read_bytes() == b"2"
