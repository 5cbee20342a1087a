"""A process's own folder is left alone while it lives, and goes with it."""

import os
import signal
import subprocess
import sys

import pytest

from lasertri.support.workspace import LOCK, sweep, workspace

HOLD = """
import pathlib, sys
from lasertri.support.workspace import workspace
with workspace(pathlib.Path(sys.argv[1])) as work:
    (work / "x").mkdir()
    print(work.name, flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path):
    """Another process with a workspace."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, tmp_path],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert process.stdout.readline().strip() == os.listdir(tmp_path)[0]
    yield process
    process.kill()
    process.communicate()


def test_it_is_gone_afterwards(tmp_path):
    with workspace(tmp_path) as work:
        (work / "a").mkdir()
        (work / "a" / "b").write_text("1")
        assert work.parent == tmp_path
    assert not list(tmp_path.iterdir())


def test_one_of_a_living_process_is_left_alone(tmp_path, holder):
    before = sorted(tmp_path.rglob("*"))
    with workspace(tmp_path):
        pass
    assert sorted(tmp_path.rglob("*")) == before
    holder.communicate("")
    assert not list(tmp_path.iterdir())


def test_one_of_a_killed_process_is_swept(tmp_path, holder):
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert list(tmp_path.iterdir())
    sweep(tmp_path)
    assert not list(tmp_path.iterdir())


def test_what_is_not_known_for_one_is_left_alone(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("1")
    (tmp_path / ".lasertri-file").write_text("1")
    (tmp_path / ".lasertri-mine").mkdir()
    (tmp_path / ".lasertri-mine" / "notes").write_text("1")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / LOCK).write_text("")
    (tmp_path / ".lasertri-link").symlink_to(tmp_path / "mine")
    (tmp_path / ".lasertri-theirs").mkdir()
    (tmp_path / ".lasertri-theirs" / LOCK).write_text("")
    before = sorted(tmp_path.rglob("*"))
    with monkeypatch.context() as patched:
        patched.setattr(os, "geteuid", lambda: -1)
        sweep(tmp_path)
    assert sorted(tmp_path.rglob("*")) == before
    sweep(tmp_path)
    assert sorted(tmp_path.rglob("*")) == [path for path in before if ".lasertri-theirs" not in path.parts]
    sweep(tmp_path / "absent")
