"""Renames that reach the disk, and of several all or none, whenever the process ends.

A workspace (`support/workspace.py`) lies in the folder whose entries change: what comes stands in its `new`, what goes
is moved to its `old`, and what comes is written down before, by name and inode.
"""

from __future__ import annotations

import ctypes
import errno
import json
import logging
import os
from collections.abc import Iterable
from pathlib import Path

from lasertri.errors import LasertriError
from lasertri.support.shown import failure

logger = logging.getLogger(__name__)

NEW, OLD, MOVES = "new", "old", "moves.json"
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # of Linux


def sync(path: Path) -> None:
    """Have a file, or the names in a folder, reach the disk."""
    if os.name != "posix" and path.is_dir():  # where a folder cannot be opened
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # of a folder, where the file system has no such thing
            raise
    finally:
        os.close(descriptor)


def exchange(one: Path, other: Path) -> None:
    """Give two folders each other's name in one step.

    Raises:
        OSError: the system or the file system has no such step.
    """
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None) if os.name == "posix" else None
    code = errno.ENOSYS
    if rename is not None:
        paths = (_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other))
        code = ctypes.get_errno() if rename(*paths, _RENAME_EXCHANGE) else 0
    if code:
        raise OSError(code, os.strerror(code), str(other))


def move(work: Path, old: Iterable[str], new: Iterable[str]) -> None:
    """Move these entries of the workspace's folder aside, and then these into it.

    Raises:
        OSError: one could not be moved; all are where they were.
        LasertriError: nor could they be moved back.
    """
    arriving = {name: (work / NEW / name).lstat().st_ino for name in new}
    (work / OLD).mkdir()
    (work / MOVES).write_text(json.dumps(arriving), encoding="utf-8")
    for path in (work / MOVES, work):
        sync(path)
    try:
        for name in old:
            os.rename(work.parent / name, work / OLD / name)
        for name in arriving:
            os.rename(work / NEW / name, work.parent / name)
    except BaseException as error:
        try:
            undo(work)
        except OSError as second:
            raise LasertriError(
                f"{work.parent}: replaced in part, which cannot be undone now: {failure(second)}; the next lasertri "
                "that writes there undoes it"
            ) from error
        raise


def undo(work: Path) -> None:
    """Move all back that `move` has moved, if it came to no end, and nothing that only has the name of such.

    What cannot go back, for something else stands there by now, is kept beside it.
    """
    try:
        arriving = dict(json.loads((work / MOVES).read_text(encoding="utf-8")))
    except (FileNotFoundError, ValueError, TypeError):  # not begun
        return
    if not any(os.path.lexists(work / NEW / name) for name in arriving):  # done
        return
    for entry in list(os.scandir(work.parent)):
        if arriving.get(entry.name) == entry.inode():
            os.rename(entry, work / NEW / entry.name)
    for name in os.listdir(work / OLD):
        if os.path.lexists(work.parent / name):
            kept = work.with_name(f"{work.name.lstrip('.')}-before")
            os.rename(work / OLD, kept)
            logger.warning("%s: what stood there before is kept in %s", work.parent / name, kept)
            break
        os.rename(work / OLD / name, work.parent / name)
    (work / MOVES).unlink()
