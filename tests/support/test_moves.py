"""Of moves that were not finished only what was moved is moved back."""

import json
import os

import pytest

from lasertri.support.moves import MOVES, NEW, OLD, exchange, move, undo


def workspace(folder, **files):
    work = folder / ".lasertri-x"
    (work / NEW).mkdir(parents=True)
    for name, text in files.items():
        (work / NEW / name).write_text(text)
    return work


def contents(folder):
    return {path.name: path.read_text() for path in folder.iterdir() if path.is_file()}


def test_two_folders_change_places(tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / "x").write_text(name)
    try:
        exchange(tmp_path / "a", tmp_path / "b")
    except OSError as error:
        pytest.skip(f"not here: {error}")
    assert [(tmp_path / name / "x").read_text() for name in "ab"] == ["b", "a"]
    with pytest.raises(FileNotFoundError):
        exchange(tmp_path / "a", tmp_path / "absent")


def test_what_was_finished_stays(tmp_path):
    (tmp_path / "x").write_text("old")
    work = workspace(tmp_path, x="new", y="new")
    move(work, ["x"], ["x", "y"])
    undo(work)
    assert contents(tmp_path) == {"x": "new", "y": "new"}
    assert contents(work / OLD) == {"x": "old"}


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_what_fails_is_undone(tmp_path, monkeypatch, error):
    (tmp_path / "x").write_text("old")
    work, rename = workspace(tmp_path, x="new", y="new"), os.rename

    def failing(one, other):
        if one == work / NEW / "y":
            raise error
        rename(one, other)

    monkeypatch.setattr(os, "rename", failing)
    with pytest.raises(type(error)):
        move(work, ["x"], ["x", "y"])
    assert contents(tmp_path) == {"x": "old"}
    assert contents(work / NEW) == {"x": "new", "y": "new"}


def test_files_of_others_are_not_moved_for_their_names(tmp_path):
    """As where a folder with such a list came out of an archive, or someone put things right by hand."""
    outside, folder = tmp_path / "mine", tmp_path / "folder"
    folder.mkdir()
    outside.write_text("mine")
    (folder / "x").write_text("mine")
    work = workspace(folder, y="new")
    (work / OLD).mkdir()
    inode = outside.stat().st_ino
    (work / MOVES).write_text(json.dumps({"x": 0, "../mine": inode, str(outside): inode, "y": 0}))
    undo(work)
    assert (contents(folder), outside.read_text()) == ({"x": "mine"}, "mine")
    (work / OLD / "x").write_text("old")
    (work / MOVES).write_text(json.dumps({"y": 0}))
    undo(work)
    assert (contents(folder), contents(folder / "lasertri-x-before")) == ({"x": "mine"}, {"x": "old"})


@pytest.mark.parametrize("text", ["", '{"a', "[1]", "3", "null"])
def test_a_list_that_was_not_finished_means_that_nothing_was_moved(tmp_path, text):
    work = workspace(tmp_path, x="new")
    (work / MOVES).write_text(text)
    undo(work)
    assert contents(work / NEW) == {"x": "new"}
