"""A file appears whole or not at all."""

import os

import pytest

from lasertri import LasertriError
from lasertri.support.atomic_files import write_whole


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
