"""Directories and files that appear whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

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
    ancestor = next(path for path in directory.absolute().parents if path.exists())
    try:
        with tempfile.TemporaryDirectory(dir=ancestor):
            pass
    except OSError as error:
        raise LasertriError(f"{directory}: expected a folder that can be written: {error.strerror}") from error
    free = shutil.disk_usage(ancestor).free
    if free < needed:
        raise LasertriError(
            f"{directory}: expected {needed / 2**20:,.0f} MiB of free disk for the checkpoint, "
            f"got {free / 2**20:,.0f} MiB"
        )


@contextmanager
def whole_directory(directory: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """A sibling temporary to write into; it takes the directory's name when all went well."""
    check_writable(directory, overwrite=overwrite)
    directory.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{directory.name}.", dir=directory.parent))
    try:
        yield temporary
        mask = _umask()
        for path in (temporary, *temporary.rglob("*")):  # mkdtemp and safetensors write for the owner alone
            path.chmod((0o777 if path.is_dir() else 0o666) & ~mask)
        if directory.exists():
            replaced = temporary.with_name(temporary.name + ".old")
            os.replace(directory, replaced)
            os.replace(temporary, directory)
            shutil.rmtree(replaced) if replaced.is_dir() else replaced.unlink()
        else:
            os.replace(temporary, directory)
    except (OSError, SafetensorError) as error:
        raise LasertriError(f"{directory}: writing failed and left nothing behind: {error}") from error
    finally:
        if temporary.exists():
            shutil.rmtree(temporary)


def write_whole(path: Path, text: str) -> None:
    """Write a file, or replace it, in one step.

    Raises:
        LasertriError: it cannot be written; what was there before stays.
    """
    try:
        replace_file(path, text.encode())
    except OSError as error:
        raise LasertriError(f"{path}: expected a file that can be written: {error.strerror}") from error


def replace_file(path: Path, content: bytes, *, durable: bool = False) -> None:
    """Write a file that appears whole or not at all, whoever else writes it; an `OSError` is the caller's.

    Args:
        durable: it reaches the disk before it appears.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex}")
    try:
        temporary.write_bytes(content)
        if durable:
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
