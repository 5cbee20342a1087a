"""A process's hidden folder beside what it writes: locked while it lives, and swept by the next if it was killed."""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from lasertri.support import moves

try:
    import fcntl
except ImportError:  # Windows, where nothing is locked and so nothing swept
    fcntl = None  # type: ignore[assignment]

PREFIX, LOCK = ".lasertri-", "lock"


@contextmanager
def workspace(place: Path) -> Iterator[Path]:
    """A new folder in this one, and gone afterwards; first those of killed processes go.

    Raises:
        OSError: none can be made there.
    """
    sweep(place)
    folder, lock = _made(place)
    try:
        yield folder
    finally:
        with suppress(OSError):  # the next sweep takes what is left
            _settle(folder)
        os.close(lock)


def sweep(place: Path) -> None:
    """Remove the workspaces of killed processes in a folder, and undo what they were in the middle of."""
    if fcntl is None:
        return
    with suppress(OSError):
        for entry in [entry for entry in os.scandir(place) if is_workspace(entry.name)]:
            with suppress(OSError):
                _sweep(Path(entry))


def is_workspace(name: str) -> bool:
    """Whether an entry of a folder has such a name."""
    return name.startswith(PREFIX)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Within, no other process is in here with this folder; without one, or without locks, some may be."""
    with ExitStack() as stack:
        if fcntl is not None:
            with suppress(OSError):
                descriptor = os.open(folder, os.O_RDONLY)
                stack.callback(os.close, descriptor)
                fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield


def _made(place: Path) -> tuple[Path, int]:
    """A folder with a locked file in it; another process may have swept it before the lock."""
    while True:
        folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=place))
        try:
            lock = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o600)
        except FileNotFoundError:
            continue
        except OSError:
            folder.rmdir()
            raise
        if fcntl is not None:
            with suppress(OSError):  # without locks nothing is swept
                fcntl.flock(lock, fcntl.LOCK_EX)
        if (folder / LOCK).exists():
            return folder, lock
        os.close(lock)


def _sweep(folder: Path) -> None:
    """Raise `OSError` where another process holds it; leave alone what another user may have put there."""
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
        return
    try:
        lock = os.open(folder / LOCK, os.O_RDWR)
    except FileNotFoundError:  # killed before the lock, or after it
        folder.rmdir()
        return
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        _settle(folder)
    finally:
        os.close(lock)


def _settle(folder: Path) -> None:
    """Undo what is half done, and remove all, the lock last."""
    moves.undo(folder)
    for path in folder.iterdir():
        if path.name != LOCK:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    (folder / LOCK).unlink()
    folder.rmdir()
