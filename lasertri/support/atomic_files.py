"""Files that appear whole or not at all."""

from __future__ import annotations

import os
import uuid
from pathlib import Path

from lasertri.errors import LasertriError
from lasertri.support.moves import sync
from lasertri.support.shown import failure
from lasertri.support.workspace import workspace


def write_whole(path: Path, text: str) -> None:
    """Write a file, or replace it, in one step, and have it reach the disk.

    Raises:
        LasertriError: it cannot be written; what was there before stays.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with workspace(path.parent) as work:
            (work / path.name).write_text(text, encoding="utf-8")
            sync(work / path.name)
            os.replace(work / path.name, path)
            sync(path.parent)
    except OSError as error:
        raise LasertriError(f"{path}: expected a file that can be written: {failure(error)}") from error


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
