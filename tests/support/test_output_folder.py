"""A result replaces only what lasertri wrote, whole or not at all, and is not lost where it cannot be put in place."""

import contextlib
import errno
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch
import writing
from marks import slow
from writing import MODES, no_exchange, read, result, write

from lasertri import LasertriError
from lasertri.support import output_folder
from lasertri.support.output_folder import FILES_NAME, OutputFolder
from lasertri.support.workspace import workspace


def environment():
    """Of a process that imports what this one does."""
    return os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}


def refusal(directory, **options):
    with pytest.raises(LasertriError) as caught:
        OutputFolder(directory, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.fixture
def stays(monkeypatch):
    """Every folder is taken for a mount point."""
    monkeypatch.setattr(output_folder, "is_mount", lambda _: True)


def test_a_folder_appears_when_it_is_complete(tmp_path):
    with OutputFolder(tmp_path / "a" / "out").written() as folder:
        (folder / "x").write_text("1")
        assert not (tmp_path / "a" / "out").exists()
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["out"]
    assert json.loads((tmp_path / "a" / "out" / FILES_NAME).read_text())["files"] == [FILES_NAME, "x"]


def test_others_may_read_what_was_written(tmp_path):
    with OutputFolder(tmp_path / "out").written() as folder:
        safetensors.torch.save_file({"x": torch.ones(1)}, folder / "x")
    assert {p.stat().st_mode & 0o444 for p in (tmp_path / "out", tmp_path / "out" / "x")} == {0o444}


def test_a_folder_for_few_stays_so(tmp_path):
    write(tmp_path / "out")
    (tmp_path / "out").chmod(0o700)
    write(tmp_path / "out", overwrite=True)
    assert (tmp_path / "out").stat().st_mode & 0o777 == 0o700


def test_looking_leaves_nothing_behind(tmp_path):
    OutputFolder(tmp_path / "a" / "b" / "out")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("how", ["exchanged", "moved", "file by file"])
def test_overwriting_replaces_all_that_was_there(tmp_path, monkeypatch, how):
    out = tmp_path / "out"
    write(out, "old")
    if how == "moved":
        monkeypatch.setattr(output_folder, "exchange", no_exchange)
    if how == "file by file":
        monkeypatch.setattr(output_folder, "is_mount", lambda _: True)
    before = out.stat().st_ino
    write(out, "new", overwrite=True)
    assert read(out) == result("new")
    assert (out.stat().st_ino == before) == (how == "file by file")
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    assert not [p for p in out.iterdir() if p.name.startswith(".")]


def test_an_error_leaves_what_was_there(tmp_path):
    write(tmp_path / "out", "old")
    with pytest.raises(ZeroDivisionError), OutputFolder(tmp_path / "out", overwrite=True).written() as folder:
        (folder / "new").write_text("2")
        raise ZeroDivisionError
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    assert read(tmp_path / "out") == result("old")


def test_only_what_lasertri_wrote_is_replaced(tmp_path):
    out = tmp_path / "out"
    write(out)
    assert "new or empty folder to write to; choose another or --overwrite" in refusal(out)
    (out / "adapter" / "notes.txt").write_text("mine")
    assert "'adapter/notes.txt' is not in its lasertri_files.json; choose another, or move that away" in refusal(
        out, overwrite=True
    )
    (tmp_path / "model").mkdir()
    for name in ("config.json", "model.safetensors"):
        (tmp_path / "model" / name).write_text("{}")
    assert "'config.json' is not in its" in refusal(tmp_path / "model", overwrite=True)
    for content in ("", "[]", '{"files": 1}', "[" * 100_000, '{"files": [[]]}'):
        (tmp_path / "model" / FILES_NAME).write_text(content)
        assert "'config.json' is not in its" in refusal(tmp_path / "model", overwrite=True)


def test_what_is_read_is_never_replaced(tmp_path, monkeypatch):
    out = tmp_path / "out"
    write(out)
    (tmp_path / "link").symlink_to(out)
    monkeypatch.chdir(tmp_path)
    for given in ("out", "link/config.json", out / "adapter" / "weights"):
        for overwrite in (False, True):
            message = refusal(out, overwrite=overwrite, inputs=[None, given])
            assert f"but {given} is read from there; choose another" in message
    assert "is read from there" in refusal("link", overwrite=True, inputs=[out / "config.json"])
    OutputFolder(out, overwrite=True, inputs=[tmp_path, "out2", "some/model", None])
    OutputFolder(out / "inside", inputs=[out])


def test_what_is_no_folder_is_refused(tmp_path):
    (tmp_path / "file").write_text("1")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    os.mkfifo(tmp_path / "pipe")
    assert "got a file; choose another" in refusal(tmp_path / "file", overwrite=True)
    assert "got a device, pipe or socket" in refusal(tmp_path / "pipe", overwrite=True)
    assert "got a device, pipe or socket" in refusal("/dev/null", overwrite=True)
    assert "can be written: Not a directory" in refusal(tmp_path / "file" / "out")
    assert "expected a folder that can be written" in refusal(tmp_path / "loop")
    assert "expected a folder that can be written" in refusal(tmp_path / ("x" * 300))
    assert "path is UTF-8" in refusal(os.fsdecode(bytes(tmp_path) + b"/\xff"))


def test_too_little_space_is_said(tmp_path):
    OutputFolder(tmp_path / "a" / "out").require(1)
    with pytest.raises(LasertriError, match="of free disk"):
        OutputFolder(tmp_path / "a" / "out").require(1 << 60)


def test_a_long_name_and_a_dangling_link_are_written_to(tmp_path):
    long = tmp_path / ("é" * 125)
    write(long)
    write(long, overwrite=True)
    assert read(long) == result("new")
    (tmp_path / "link").symlink_to(tmp_path / "a" / "b")
    write(tmp_path / "link")
    assert read(tmp_path / "a" / "b") == result("new")
    assert (tmp_path / "link").is_symlink()


def test_the_working_directory_stays(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    before = Path().stat().st_ino
    write(".", "old")
    write(".", "new", overwrite=True)
    assert read(Path()) == result("new")
    assert Path().stat().st_ino == (tmp_path / "here").stat().st_ino == before


def test_a_folder_whose_parent_cannot_be_written_stays(tmp_path, monkeypatch):
    (tmp_path / "out").mkdir()

    @contextlib.contextmanager
    def only_within(place):
        if place == tmp_path:
            raise PermissionError(errno.EACCES, "Permission denied")
        with workspace(place) as work:
            yield work

    monkeypatch.setattr(output_folder, "workspace", only_within)
    write(tmp_path / "out")
    assert read(tmp_path / "out") == result("new")
    assert "Permission denied" in refusal(tmp_path / "other")


@pytest.mark.skipif(
    not shutil.which("unshare") or subprocess.run(["unshare", "-rm", "true"], capture_output=True).returncode != 0,
    reason="no namespaces of one's own here",
)
def test_a_mount_point_is_written_file_by_file(tmp_path):
    """One of the same file system, which only Linux tells, and one of another, too small for a second result."""
    for name in ("old", "a out", "small"):
        (tmp_path / name).mkdir()
    mounts = "mount --bind old 'a out' && mount -t tmpfs -o size=64k none small"
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", f'{mounts} && exec "$0" -c "$1"', sys.executable, WRITE_TWICE],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr == ""
    assert (tmp_path / "old" / "x").read_text() == "2" * 50_000
    bind, tmpfs = done.stdout.splitlines()
    assert bind == "a out: ['lasertri_files.json', 'x']"
    rescued = re.fullmatch("small: writing failed: No space left on device; what was found is kept in (.*)", tmpfs)[1]
    assert Path(rescued).is_relative_to(tmp_path / "small")


WRITE_TWICE = """
import os
from lasertri import LasertriError
from lasertri.support.output_folder import OutputFolder

for out in ("a out", "small"):
    try:
        for text in "12":
            output = OutputFolder(out, overwrite=True)
            with output.written(rescue=lambda folder: (folder / "x").write_text(text)) as folder:
                (folder / "x").write_text(text * 50_000)
        print(f"{out}: {sorted(os.listdir(out))}")
    except LasertriError as error:
        print(error)
"""


@pytest.mark.usefixtures("stays")
def test_what_a_mount_point_has_of_its_own_is_left_alone(tmp_path):
    (tmp_path / "lost+found").mkdir()
    (tmp_path / "lost+found" / "x").write_text("1")
    write(tmp_path)
    write(tmp_path, overwrite=True)
    assert read(tmp_path) == result("new") | {"lost+found/x": "1"}


def kept_elsewhere(message):
    return Path(re.search(r"whole in (.*)$", message)[1])


@pytest.mark.parametrize("mount", [False, True])
@pytest.mark.parametrize("before", [None, "old"])
def test_of_two_runs_into_one_folder_the_second_replaces_nothing(tmp_path, monkeypatch, mount, before):
    out = tmp_path / "out"
    out.mkdir()
    monkeypatch.setattr(output_folder, "is_mount", lambda _: mount)
    if before:
        write(out, before)
    first, second = (OutputFolder(out, overwrite=True) for _ in range(2))
    with first.written() as folder:
        (folder / "x").write_text("first")
    meanwhile = "could not be put there: another process changed it meanwhile"
    with pytest.raises(LasertriError, match=meanwhile) as caught, second.written() as folder:
        (folder / "x").write_text("second")
    assert read(kept_elsewhere(str(caught.value))) == {"x": "second"}
    assert (out / "x").read_text() == "first"
    assert not [p for p in tmp_path.rglob("*") if p.name.startswith(".")]


def test_what_is_put_there_meanwhile_is_not_replaced(tmp_path):
    output = OutputFolder(tmp_path / "out")
    with pytest.raises(LasertriError, match="Not a directory; it is whole in") as caught, output.written() as folder:
        (folder / "x").write_text("1")
        (tmp_path / "out").write_text("mine")
    assert (tmp_path / "out").read_text() == "mine"
    assert read(kept_elsewhere(str(caught.value))) == {"x": "1"}


@pytest.mark.parametrize("error", [KeyboardInterrupt(), MemoryError(), LasertriError("not the same")])
def test_what_cannot_be_made_again_soon_is_rescued(tmp_path, caplog, error):
    output = OutputFolder(tmp_path / "out")
    with pytest.raises(type(error)) as caught, output.written(rescue=lambda f: (f / "edit").write_text("1")):
        raise error
    said = str(caught.value) + caplog.text
    kept = Path(re.search(r"what was found is kept in (\S+)", said)[1])
    assert [p.name for p in tmp_path.iterdir()] == [kept.name]
    assert read(kept) == {"edit": "1"}


def test_what_is_rescued_goes_where_there_is_room(tmp_path, monkeypatch):
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    tried = []

    def write_edit(folder):
        (folder / "edit").write_text("1")
        tried.append(folder)
        if len(tried) == 1:
            raise OSError(errno.EDQUOT, "Disk quota exceeded")

    output, said = OutputFolder(tmp_path / "out"), "writing failed: No space left on device; what was found is kept in"
    with pytest.raises(LasertriError, match=said), output.written(rescue=write_edit):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert [p.parent for p in tried] == [tmp_path, tmp_path / "cwd"]
    assert sorted(tmp_path.rglob("*")) == [tmp_path / "cwd", tried[1], tried[1] / "edit"]


@pytest.mark.parametrize("fault", ["killed", "full", slow("full_from_then_on")])
@pytest.mark.parametrize("mode", MODES)
def test_a_fault_at_any_operation_leaves_the_old_result_or_the_new(mode, fault):
    """A kill or a full disk; what was found is in neither or in the one, or in a folder that the message names."""
    done = subprocess.run(
        [sys.executable, writing.__file__, mode, fault], capture_output=True, text=True, env=environment(), check=False
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 40
