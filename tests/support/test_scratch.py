"""A temporary folder is there, or it is said why not."""

import errno
import tempfile

import pytest

from lasertri import LasertriError
from lasertri.support.scratch import scratch_folder


def test_it_is_gone_afterwards():
    with scratch_folder() as folder:
        (folder / "x").write_text("x")
    assert not folder.exists()


def test_where_there_is_no_place_for_one(monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "absent"))
    with (
        pytest.raises(
            LasertriError, match="temporary files that can be written: .*No such file.*; name one with TMPDIR"
        ),
        scratch_folder(),
    ):
        pass


def test_where_it_is_full():
    with pytest.raises(LasertriError, match="No space left on device; name one with TMPDIR"), scratch_folder():
        raise OSError(errno.ENOSPC, "No space left on device")


def test_other_errors_within_are_their_own():
    with pytest.raises(FileNotFoundError), scratch_folder() as folder:
        (folder / "absent").read_text()
