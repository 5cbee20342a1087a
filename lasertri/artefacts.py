"""Directories that appear whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lasertri.errors import LasertriError


def check_writable(directory: Path, *, needed: int = 0, overwrite: bool = False) -> None:
    """Find out before long work whether `whole_directory` will succeed.

    Args:
        needed: bytes that will be written.

    Raises:
        LasertriError: it exists with something in it, cannot be written, or the disk is too full.
    """
    if directory.exists() and not overwrite and (not directory.is_dir() or any(directory.iterdir())):
        raise LasertriError(f"{directory}: expected a new or empty folder to write to; choose another or --overwrite")
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=directory.parent):
            pass
    except OSError as error:
        raise LasertriError(f"{directory}: expected a folder that can be written: {error.strerror}") from error
    free = shutil.disk_usage(directory.parent).free
    if free < needed:
        raise LasertriError(
            f"{directory}: expected {needed / 2**20:,.0f} MiB of free disk for the checkpoint, "
            f"came {free / 2**20:,.0f} MiB"
        )


@contextmanager
def whole_directory(directory: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """A sibling temporary to write into; it takes the directory's name when all went well."""
    check_writable(directory, overwrite=overwrite)
    temporary = Path(tempfile.mkdtemp(prefix=f".{directory.name}.", dir=directory.parent))
    try:
        temporary.chmod(0o777 & ~_umask())
        yield temporary
        if directory.exists():
            replaced = temporary.with_name(temporary.name + ".old")
            os.replace(directory, replaced)
            os.replace(temporary, directory)
            shutil.rmtree(replaced) if replaced.is_dir() else replaced.unlink()
        else:
            os.replace(temporary, directory)
    finally:
        if temporary.exists():
            shutil.rmtree(temporary)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
