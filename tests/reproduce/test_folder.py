"""Columns are kept as they finish, whatever happens to their folder."""

import json
import os
import re
from pathlib import Path

import pytest

from lasertri import LasertriError
from lasertri.reproduce.folder import Folder

RECORD = {"rules": {}, "result": {}}


def full(*_):
    raise OSError(28, "No space left on device")


def test_a_column_is_there_for_the_next_run_and_nothing_else_is(tmp_path):
    Folder(tmp_path / "out").write("fever", "baseline", RECORD)
    assert Folder(tmp_path / "out").finished("fever", "baseline")
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "fever", "baseline.json"]


def test_a_column_that_cannot_be_written_is_kept_elsewhere(tmp_path, monkeypatch):
    folder = Folder(tmp_path)
    with monkeypatch.context() as patched, pytest.raises(LasertriError, match="No space left on device") as caught:
        patched.setattr(os, "replace", full)
        folder.write("fever", "baseline", RECORD)
    kept = Path(re.search(r"the column is kept in (.*)$", str(caught.value))[1])
    assert json.loads((kept / "baseline.json").read_text()) == RECORD
    assert not folder.finished("fever", "baseline")


def test_a_folder_that_takes_no_columns_is_refused_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "mkdir", full)
    with pytest.raises(LasertriError, match="expected a folder that can be written: No space left on device"):
        Folder(tmp_path)


def test_what_a_killed_run_left_is_swept(tmp_path):
    for place in (tmp_path, tmp_path / "fever"):
        (place / ".lasertri-killed").mkdir(parents=True)
        (place / ".lasertri-killed" / "lock").touch()
    Folder(tmp_path)
    assert [path.name for path in tmp_path.rglob("*")] == ["fever"]
