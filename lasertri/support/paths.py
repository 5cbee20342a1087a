"""What a path is: one at all, a mount point, within a folder, or one of many files below."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from lasertri.errors import LasertriError, shown


def check_path(expected: str, value: object) -> None:
    """Raise unless this is a path, or the text of one."""
    if not isinstance(value, str | Path):
        raise LasertriError(f"expected {expected}, got {shown(value)}")


def names_a_place(value: str) -> bool:
    """Whether it can be a path alone, and no id on the hub."""
    return value.startswith(("/", ".", "~"))


def files_below(path: Path) -> Iterator[Path]:
    """All that are no folders, links to such among them; the path itself where it is no folder."""
    if path.is_symlink() or not path.is_dir():
        yield path
        return
    for entry in sorted(path.iterdir()):
        yield from files_below(entry)


def existing(path: Path) -> Path:
    """The path, or the nearest above it that exists."""
    return next(place for place in (path, *path.parents) if place.exists())


def is_within(path: Path, folder: Path) -> bool:
    """Whether something, by the name that is given or where that leads, is a folder or stands in it."""
    if not os.path.lexists(path):
        return False
    names = (Path(os.path.abspath(path)), Path(os.path.realpath(path)))
    return any(place.exists() and place.samefile(folder) for name in names for place in (name, *name.parents))


def is_mount(folder: Path) -> bool:
    """Whether a folder is a mount point; where one of the same file system is mounted, only Linux tells."""
    if folder.is_mount():
        return True
    try:
        lines = Path("/proc/self/mountinfo").read_bytes().splitlines()
    except OSError:
        return False
    name = os.fsencode(folder)
    for character in b"\\ \t\n":
        name = name.replace(bytes([character]), b"\\%03o" % character)
    return any(line.split()[4] == name for line in lines)
