"""Folders whose files were cut, changed, exchanged or lost."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from typing import Any

from fuzz.texts import JUNK


def damage(random: Random, folder: Path, others: list[Path]) -> str:
    """Do one thing to one file of a folder, and say what.

    Args:
        others: folders of other contents, with files of the same names.
    """
    path = random.choice(sorted(path for path in folder.rglob("*") if path.is_file()))
    content = path.read_bytes()
    place = random.randrange(len(content) + 1)
    kind = random.choice(("cut", "lost", "empty", "byte", "byte", "byte", "inserted", "other", "field", "field"))
    if kind == "cut":
        path.write_bytes(content[:place])
    elif kind == "lost":
        path.unlink()
    elif kind == "empty":
        path.write_bytes(
            random.choice((b"", b"{}", b"[]", b"null", b"\xff\xfe", b"version https://git-lfs.github.com/spec/v1"))
        )
    elif kind == "byte":
        place = random.choice((place, place % 64))  # the head of a safetensors file is its first bytes
        path.write_bytes(content[:place] + bytes([random.randrange(256)]) + content[place + 1 :])
    elif kind == "inserted":
        path.write_bytes(content[:place] + random.randbytes(random.randint(1, 9)) + content[place:])
    elif kind == "other":
        other = random.choice(others) / path.name
        path.write_bytes(other.read_bytes() if other.exists() else b"")
    elif path.suffix == ".json":
        path.write_text(json.dumps(changed(random, json.loads(content)), default=str))
    return f"{kind} {path.name}"


def changed(random: Random, document: Any) -> Any:
    """The same with one field, however deep, gone or another value."""
    if not isinstance(document, dict | list) or not document or random.random() < 0.2:
        return random.choice([value for value in JUNK if not isinstance(value, int) or abs(value) < 9])
    keys = list(document) if isinstance(document, dict) else range(len(document))
    key = random.choice(list(keys))
    made = document.copy()
    if random.random() < 0.2:
        del made[key]
    else:
        made[key] = changed(random, document[key])
    return made
